"""What rounds and evaluations measure, by hand."""

from __future__ import annotations

import math
import statistics
import types
from typing import Any

import pytest
import smooth
import torch

from every_setting import Lab, called, one_round
from tastemaker.evaluation.evaluate import Evaluation
from tastemaker.evaluation.metrics import diversity, share_correct
from tastemaker.rewards.base import Scores
from tastemaker.runs.checkpoint import State
from tastemaker.training import rounds
from tastemaker.training.evaluations import RunEvaluation
from tastemaker.training.measurements import explained_variance, parts_means, reward_figures
from tastemaker.types import Draw

PROMPTS = ["a", "b", "a", "b", "b", "c"]


def images() -> torch.Tensor:
    """[6,3,1,2]: the left pixel of a prompt's images differs, the right one not; c has one image."""
    x = torch.full((6, 3, 1, 2), 0.5)
    x[:, :, 0, 0] = torch.tensor([0.0, 0.0, 0.4, 0.3, 0.6, 0.9])[:, None]
    return x


def test_diversity_is_the_mean_over_pixels_and_prompts_of_the_population_deviation():
    """Of 0 and 0.4 the deviation is 0.2, of 0, 0.3 and 0.6 it is sqrt(0.18 / 3); half of the pixels have none."""
    assert diversity(images(), PROMPTS) == pytest.approx((0.2 / 2 + math.sqrt(0.06) / 2) / 2, abs=1e-7)
    assert diversity(images()[[0, 1, 5]], ["a", "b", "c"]) == 0
    assert diversity(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).repeat(1, 3, 4, 4), ["a", "a"]) == 0.5


def test_progress_is_in_deviations_of_the_base_models_rewards():
    """Where the base model's rewards do not differ, it is in the reward's own unit."""
    rewards, figures = torch.tensor([1.0, 3.0]), {"reward/mean": 2.0, "reward/std": 1.0}
    assert reward_figures(rewards, State(base_mean=1.0, base_std=4.0)) == {**figures, "reward/base_stds": 0.25}
    assert reward_figures(rewards, State(base_mean=1.5, base_std=0.0)) == {**figures, "reward/base_difference": 0.5}
    assert parts_means({"jpeg": torch.tensor([1.0, 2.0]), "clip": torch.tensor([0.0, 4.0])}) == {
        "reward/parts/jpeg": 1.5, "reward/parts/clip": 2.0,
    }  # fmt: skip


def test_the_judges_share_leaves_out_what_could_not_be_judged():
    assert share_correct([True, None, False, True]) == {"judge/correct": pytest.approx(2 / 3)}
    assert share_correct([None, None]) == {}


def test_an_evaluations_record():
    draw = Draw(0, 1, tuple(PROMPTS), (0, 1, 0, 1, 1, 2), (0, 0, 1, 1, 2, 0))
    reward = torch.tensor([1.0, 3.0, 1.0, 3.0, 1.0, 3.0])
    scores = {"main": Scores(reward), "x": Scores(2 * reward)}
    found = RunEvaluation("main", Evaluation(draw, images(), scores, [True, False, None, None, None, None]))
    # Half of the pixels differ: a's by 0.4, b's by 0.3, 0.6 and 0.3, and those of different prompts by what is left.
    left = [0.0, 0.0, 0.4, 0.3, 0.6, 0.9]
    apart = {True: [], False: []}
    for one, prompt in enumerate(PROMPTS):
        for same, means in apart.items():
            others = [n for n, other in enumerate(PROMPTS) if n != one and (other == prompt) == same]
            means += [statistics.fmean(abs(left[n] - left[one]) for n in others)] if others else []
    same, other = (math.sqrt(0.5) * statistics.fmean(apart[kind]) for kind in (True, False))
    assert found.record(State(round=7, base_mean=1.0, base_std=2.0)) == {
        "eval/difference/seeds": pytest.approx(same), "eval/difference/prompts": pytest.approx(other),
        "eval/grid_power": 0.0,
        "evaluation": 7, "eval/reward/mean": 2.0, "eval/reward/std": 1.0, "eval/reward/base_stds": 0.5,
        "eval/rewards/x": 4.0, "eval/diversity": pytest.approx((0.1 + math.sqrt(0.06) / 2) / 2),
        "eval/judge/correct": 0.5,
    }  # fmt: skip


def test_a_rounds_record_has_population_deviations(checkpoint, tmp_path):
    session = Lab(tmp_path, checkpoint).session()
    session.state.base_mean, session.state.base_std = 0.5, 2.0
    with called(rounds, "sampled") as seen:
        record = one_round(session)
    x, draw = seen[0][2].images, seen[0][0][1]
    rewards = smooth.redness(x, draw.prompts).tolist()
    expected = {
        "reward/mean": statistics.fmean(rewards), "reward/std": statistics.pstdev(rewards), "reward/min": min(rewards),
        "reward/max": max(rewards), "reward/base_stds": (statistics.fmean(rewards) - 0.5) / 2, "advantage/std": 1.0,
    }  # fmt: skip
    assert {name: record[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert record["diversity"] == pytest.approx(diversity(x, draw.prompts))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1.0, 3.0, 5.0, 6.0], 0.9625),  # misses 0, 0, 0, 1: a variance of 1/4 - 1/16 of the returns' 5
        ([4.0, 4.0, 4.0, 4.0], 0.0),  # their mean
        ([11.0, 13.0, 15.0, 17.0], 1.0),  # all of them, but for a constant
        ([-1.0, -3.0, -5.0, -7.0], -3.0),  # misses 2, 6, 10, 14: a variance of 20
    ],
)
def test_explained_variance(value, expected):
    one: Any = types.SimpleNamespace(num_processes=1)
    rows: Any = types.SimpleNamespace(value=torch.tensor(value), target=torch.tensor([1.0, 3.0, 5.0, 7.0]))
    assert explained_variance(one, rows) == {"value/explained_variance": pytest.approx(expected, abs=1e-12)}


def test_returns_that_do_not_differ_have_no_variance_to_explain():
    one: Any = types.SimpleNamespace(num_processes=1)
    for target in (torch.full((4,), 0.1), torch.empty(0)):
        assert explained_variance(one, types.SimpleNamespace(value=target + 1, target=target)) == {}  # type: ignore[arg-type]
    assert explained_variance(one, types.SimpleNamespace(value=None, target=None)) == {}  # type: ignore[arg-type]
