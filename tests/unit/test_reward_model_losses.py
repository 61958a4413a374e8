"""The loss of reward models, their accuracy and calibration, by numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tastemaker.reward_models.comparisons import Pair, Task
from tastemaker.reward_models.fit import bootstrap, predictions, subset
from tastemaker.reward_models.losses import batch_of, centering_loss, comparison_loss, pair_losses
from tastemaker.reward_models.statistics import (
    Predictions,
    accuracy,
    calibration,
    calibration_error,
    effective_count,
)

LN = math.log


def task(*pairs: Pair, images: int = 3) -> Task:
    return Task("a", tuple(range(images)), pairs)


def test_a_decided_pair_costs_minus_log_sigmoid_of_the_difference():
    """sigmoid(ln 3) = 3/4: right 0.288, wrong ln 4 = 1.386."""
    rewards = torch.tensor([LN(3), 0.0])
    right, wrong = (batch_of([task(Pair(0, 1, label), images=2)]) for label in (1.0, 0.0))
    assert comparison_loss(rewards, right).item() == pytest.approx(-LN(3 / 4))
    assert comparison_loss(rewards, wrong).item() == pytest.approx(LN(4))


def test_ties_and_soft_labels_cost_nothing_at_their_own_probability():
    """At d = 0 a tie costs 0; at sigmoid(d) = 3/4 the label 3/4 does. A tie at d = ln 3: (ln 4 + ln 4/3) / 2 - ln 2."""
    batch = batch_of([task(Pair(0, 1, 0.5), images=2)])
    assert comparison_loss(torch.zeros(2), batch).item() == pytest.approx(0, abs=1e-7)
    expected = (LN(4) + LN(4 / 3)) / 2 - LN(2)
    assert comparison_loss(torch.tensor([LN(3), 0.0]), batch).item() == pytest.approx(expected, abs=1e-6)
    soft = batch_of([task(Pair(0, 1, 0.75), images=2)])
    assert comparison_loss(torch.tensor([LN(3), 0.0]), soft).item() == pytest.approx(0, abs=1e-6)


def test_the_loss_is_the_mean_over_pairs_of_a_task_and_then_over_tasks():
    """One task with three pairs, another with one: each counts one half, whatever its number of pairs."""
    first = task(Pair(0, 1, 1.0), Pair(0, 2, 1.0), Pair(1, 2, 0.0))
    second = task(Pair(0, 1, 1.0), images=2)
    rewards = torch.tensor([1.0, 0.0, -1.0, 0.5, 0.0])
    sig = lambda d: -LN(1 / (1 + math.exp(-d)))  # noqa: E731
    expected = ((sig(1) + sig(2) + sig(-1)) / 3 + sig(0.5)) / 2
    assert comparison_loss(rewards, batch_of([first, second])).item() == pytest.approx(expected)


def test_centring_by_hand():
    """Sums 1, 0, -1 of the first task with weights 2, 1, 1: (2 + 0 + 1) / 4; 0.5 squared of the second. Its gradient at
    the second task's images is 2 * 0.5 / 2 for both."""
    first = task(Pair(0, 1, 1.0, 2), Pair(0, 2, 1.0), Pair(1, 2, 0.0))
    second = task(Pair(0, 1, 1.0), images=2)
    rewards = torch.tensor([1.0, 0.0, -1.0, 0.5, 0.0], requires_grad=True)
    loss = centering_loss(rewards, batch_of([first, second]))
    assert loss.item() == pytest.approx((3 / 4 + 0.25) / 2)
    (gradient,) = torch.autograd.grad(loss, rewards)
    assert gradient[3:].tolist() == pytest.approx([0.5, 0.5])


def test_votes_weigh_pairs_within_a_task():
    """Weights 3 and 1: (3 * 0.288 + 1 * ln 4) / 4, with d = ln 3 for both pairs of images 0 and 1, 2."""
    batch = batch_of([task(Pair(0, 1, 1.0, 3), Pair(0, 2, 0.0, 1))])
    found = comparison_loss(torch.tensor([LN(3), 0.0, 0.0]), batch).item()
    assert found == pytest.approx((3 * -LN(3 / 4) + LN(4)) / 4)


def test_averaged_votes_have_the_gradient_of_a_pair_for_each():
    """Cross-entropy is linear in the label: votes 1, 1, 0 are the label 2/3."""
    rewards = torch.tensor([0.4, -0.3], requires_grad=True)
    (averaged,) = torch.autograd.grad(
        comparison_loss(rewards, batch_of([task(Pair(0, 1, 2 / 3, 3), images=2)])), rewards
    )
    votes = torch.tensor([1.0, 1.0, 0.0])
    loss = F.binary_cross_entropy_with_logits((rewards[0] - rewards[1]).expand(3), votes)
    (single,) = torch.autograd.grad(loss, rewards)
    torch.testing.assert_close(averaged, single)


def test_gradients_by_hand():
    """d loss / d r_first = sigmoid(d) - y: at d = ln 3, 3/4 - 1 for a won pair and 3/4 - 1/2 for a tie."""
    for label, expected in ((1.0, -0.25), (0.5, 0.25), (0.0, 0.75)):
        rewards = torch.tensor([LN(3), 0.0], requires_grad=True)
        comparison_loss(rewards, batch_of([task(Pair(0, 1, label), images=2)])).backward()
        assert rewards.grad is not None
        assert rewards.grad.tolist() == pytest.approx([expected, -expected])


def test_it_is_the_softmax_form_of_pick_score():
    """Cross-entropy of softmax((r_0, r_1)) with (y, 1 - y), minus its least value (PickScore's criterion)."""
    rewards = torch.tensor([0.7, -0.2, 1.1])
    pairs = (Pair(0, 1, 1.0), Pair(0, 2, 0.5), Pair(1, 2, 0.25))
    found = pair_losses(rewards, batch_of([task(*pairs)]))
    for value, pair in zip(found.tolist(), pairs, strict=True):
        logs = torch.log_softmax(rewards[[pair.a, pair.b]], dim=0)
        y = torch.tensor([pair.better, 1 - pair.better])
        entropy = -sum(p * LN(p) for p in y.tolist() if p > 0)
        assert value == pytest.approx(-(y * logs).sum().item() - entropy, abs=1e-6)


def found(probability, better, clusters=None) -> Predictions:
    return Predictions(np.array(probability), np.array(better), tuple(clusters or range(len(better))))


def test_accuracy_leaves_ties_out_and_counts_equal_rewards_half():
    """Right, wrong, a tie, equal rewards: (1 + 0 + 0.5) / 3."""
    share = accuracy(found([0.9, 0.3, 0.9, 0.5], [1.0, 1.0, 0.5, 0.0]))
    assert share is not None
    assert (share.value, share.count) == (pytest.approx(0.5), 3)
    assert accuracy(found([0.9], [0.5])) is None


def test_the_effective_number_of_pairs_is_that_of_clusters_where_they_agree():
    """Clusters (1, 1), (1, 1), (0, 0), (0, 0): p = 1/2, sum_g (s_g - p n_g)^2 = 4, var = 4/3 * 4 / 64 = 1/12, and
    p (1 - p) / var = 3. Single values 1, 1, 0, 0: var = 4/3 * 1 / 16 = 1/12, again 3, and never above their number."""
    assert effective_count([[1, 1], [1, 1], [0, 0], [0, 0]]) == pytest.approx(3)
    assert effective_count([[1], [1], [0], [0]]) == pytest.approx(3)
    assert effective_count([[1, 0], [1, 0]]) == 4  # clusters that do not differ say no less than their pairs
    assert effective_count([[1, 1], [1, 1], [1, 1]]) == 3
    assert effective_count([[1, 0, 1]]) == 1


def test_clusters_widen_the_interval():
    same = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    apart, together = (accuracy(found([0.9] * 6, same, c)) for c in (range(6), "aaabbb"))
    assert apart is not None
    assert together is not None
    assert together.value == apart.value
    assert together.high - together.low > apart.high - apart.low


def test_calibration_by_hand():
    """Probabilities 0.9 and 0.1 are both confidence 0.9; one is right, one wrong. 0.6 with the label 0.5 is half."""
    bins = calibration(found([0.92, 0.08, 0.62], [1.0, 1.0, 0.5]), bins=5)
    assert [(round(b.confidence, 2), b.right, b.count) for b in bins] == [(0.62, 0.5, 1), (0.92, 0.5, 2)]
    assert calibration_error(bins) == pytest.approx((0.12 + 2 * 0.42) / 3)
    assert calibration(found([1.0], [1.0]))[0].confidence == 1


def test_predictions_are_sigmoids_of_differences():
    tasks = [task(Pair(0, 1, 1.0), Pair(1, 2, 0.5)), Task("b", (3, 4), (Pair(0, 1, 0.0),))]
    made = predictions([torch.tensor([LN(3), 0.0, 0.0]), torch.tensor([0.0, LN(3)])], tasks)
    assert made.probability.tolist() == pytest.approx([0.75, 0.5, 0.25])
    assert made.better.tolist() == [1.0, 0.5, 0.0]
    assert made.cluster == ("a", "a", "b")


def test_subsets_are_nested_and_bootstrap_samples_are_not_all_of_them():
    tasks = [Task(str(i), (i,), ()) for i in range(20)]
    small, large = subset(tasks, 5, 1), subset(tasks, 12, 1)
    assert {t.prompt for t in small} < {t.prompt for t in large}
    assert subset(tasks, 5, 2) != small
    drawn = bootstrap(tasks, 0)
    assert len(drawn) == 20
    assert len({t.prompt for t in drawn}) < 20
    assert bootstrap(tasks, 0) == drawn
    assert bootstrap(tasks, 1) != drawn
