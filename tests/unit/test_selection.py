"""Selection: which images are learned from, by hand."""

import pytest
import torch

from tastemaker.algorithms.selection import All, BestWorst, NonZero
from tastemaker.errors import ConfigError


def chosen(selection, advantage, group):
    return selection.chosen(torch.tensor(advantage), group).nonzero().flatten().tolist()


def test_all_is_every_image():
    """Also one whose advantage is not finite: the update's check is to see it."""
    assert chosen(All(), [0.0, -1.0, 2.0], [0, 0, 1]) == [0, 1, 2]
    assert chosen(All(), [float("nan"), -1.0], [0, 0]) == [0, 1]


def test_nonzero_leaves_out_what_teaches_nothing():
    assert chosen(NonZero(), [0.0, -1e-9, 2.0, -0.0, float("nan")], [0, 0, 1, 1, 1]) == [1, 2, 4]


@pytest.mark.parametrize(
    ("advantage", "kept"),
    [
        ([0.6, -0.6, 0.1], [0, 1]),  # best and worst both reach the threshold of 0.5
        ([0.6, 0.7, 0.1], [1]),  # the best alone: the worst is above -0.5
        ([-0.6, -0.9, -0.1], [1]),  # the worst alone
        ([0.2, -0.3, 0.0], []),  # neither
        ([0.5, -0.5, 0.0], [0]),  # r >= 0.5 and r < -0.5: the tests' edges differ (B2's code)
        ([2.0, 3.0, 2.5], [1]),  # one a side, however many reach it
    ],
)
def test_best_worst_by_hand(advantage, kept):
    assert chosen(BestWorst(0.5), advantage, [0, 0, 0]) == kept


def test_best_worst_looks_at_each_group_by_itself():
    """Groups that are interleaved: 0 has (0.9, 0.8, -0.7), 5 has (-2, -3), 2 has (1,)."""
    advantage, group = [0.9, -2.0, 0.8, 1.0, -3.0, -0.7], [0, 5, 0, 2, 5, 0]
    assert chosen(BestWorst(0.5), advantage, group) == [0, 3, 4, 5]


def test_a_negative_threshold_is_refused():
    with pytest.raises(ConfigError, match="must not be negative"):
        BestWorst(-0.1)
