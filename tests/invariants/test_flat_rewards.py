"""Rewards that do not differ: nothing is learned from them, and no standard deviations are made of them."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from gaussian_world import World, session
from tastemaker.algorithms.awm import AWM
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.dgpo import DGPO
from tastemaker.algorithms.dpo import DPO
from tastemaker.algorithms.dppo import DPPO
from tastemaker.algorithms.grpo import GRPO
from tastemaker.algorithms.nft import NFT
from tastemaker.algorithms.online_diffusion_dpo import OnlineDiffusionDPO
from tastemaker.algorithms.preference_pairs import pairs
from tastemaker.config.schema import Advantage, Config, Optimizer, Sampling
from tastemaker.errors import RewardError
from tastemaker.evaluation.mixture import standing
from tastemaker.rewards.base import as_reward, wrap
from tastemaker.rewards.combination import Combination
from tastemaker.rewards.expression import parse
from tastemaker.runs.checkpoint import State
from tastemaker.training.finish import summary
from tastemaker.training.measurements import reward_figures
from tastemaker.training.progress import COLUMNS, plain
from tastemaker.training.rounds import one_round
from tastemaker.training.update import standardised
from tastemaker.types import Cond, Draw, Rollout, Rows

METHODS = [
    *((DDPO(), how) for how in ("per-prompt", "windowed", "group", "round", "base")),
    (GRPO(kl=0.0), "group"), (GRPO(kl=0.0, ratio="normalised"), "decoupled"), (DPPO(), "group"),
    (NFT(), "group"), (DPO(), "group"), (AWM(), "group"), (DGPO(), "group"), (OnlineDiffusionDPO(), "group"),
]  # fmt: skip


@pytest.mark.parametrize(("algorithm", "how"), METHODS, ids=lambda value: getattr(value, "name", value))
def test_a_round_of_equal_rewards_moves_nothing(algorithm, how):
    """Gradients of exactly 0, whatever rounding makes of the mean of seven; pairs of equal images are none.

    NFT's two halves cancel but for their own rounding.
    """
    sampling = Sampling(samples=14, per_prompt=7, steps=5, batch=14)
    config = Config(
        algorithm=algorithm, sampling=sampling, optimizer=Optimizer(updates=1, rows=500),
        advantage=Advantage(normalise=how, clip=None, min_count=2),
    )  # fmt: skip
    world = World("vp")
    run = session(config, world, ["left", "right"], lambda groups: torch.optim.SGD(groups, lr=1.0))
    run.reward = as_reward(lambda x, prompts: [123456.7] * len(prompts))
    run.state = State(base_mean=torch.tensor(123456.7).item(), base_std=0.0)
    record = one_round(run)
    # NFT: two equal squares pull in opposite directions, and float32 rounds their sum (times span = 5).
    most = 1e-7 if algorithm.name == "nft" else 0.0
    assert record.get("grad_norm", 0.0) <= most
    assert world.shift.theta.abs().max() <= most
    assert record["advantage/std"] == 0
    assert record["reward/std"] == record["reward/base_difference"] == 0
    assert "reward/base_stds" not in record


def test_figures_have_the_base_models_unit_where_there_is_one():
    """In float64: the squares of 1e30 are beyond float32."""
    state = State(base_mean=1e30, base_std=5e29)
    found = reward_figures(torch.tensor([2e30, 3e30]), state)
    assert found == pytest.approx({"reward/mean": 2.5e30, "reward/std": 5e29, "reward/base_stds": 3.0})
    found = reward_figures(torch.tensor([0.0, 1.0]), replace(state, base_mean=0.25, base_std=0.0))
    assert found == {"reward/mean": 0.5, "reward/std": 0.5, "reward/base_difference": 0.25}


def test_the_closing_line_claims_no_deviations(tmp_path):
    lines = [
        {"evaluation": 0, "eval/reward/mean": 0.0, "eval/reward/base_difference": 0.0},
        {"evaluation": 2, "eval/reward/mean": 2e-6, "eval/reward/base_difference": 2e-6},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = summary(Config(reward="mine:taste"), tmp_path, tmp_path / "report.html").splitlines()[0]
    assert said == "mine:taste: 0.000 -> 2e-06 (+2e-06; the base model's rewards do not differ)"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.000"),
        (-1.23456, "-1.235"),
        (0.01, "0.010"),
        (1e-30, "1e-30"),
        (123456.7, "123456.700"),
        (1e30, "1e+30"),
    ],
)
def test_figures_are_shown_with_decimals_or_digits(value, shown):
    assert plain(value) == shown
    assert plain(value, sign=True) == (shown if value < 0 else f"+{shown}")
    assert COLUMNS["reward/base_difference"][1](0.5) == "+0.500"


def test_advantages_of_an_update_that_do_not_differ_are_0_and_divide_nothing():
    """PPO divides its divergence by the unit: of one row it would be 1e8 times what it is."""
    draw = Draw(0, 1, ("a",) * 3, (0,) * 3, (0, 1, 2))
    rollout = Rollout(Cond({}, torch.zeros(3, dtype=torch.int64), 1.0), draw)
    places = torch.arange(3)
    for values in (torch.full((3,), 123456.7), torch.tensor([1.0, 1 + 1e-7, 1.0])):
        rows = Rows(rollout, places, places, advantage=values)
        found = standardised(Accelerator(cpu=True), rows, 3)
        assert found.advantages().tolist() == [0, 0, 0]
        assert found.unit is not None
        assert found.unit.tolist() == [1, 1, 1]
    # (1, 2, 3) times 1e-12: the eps of 1e-8 does not swallow it.
    small = standardised(Accelerator(cpu=True), Rows(rollout, places, places, advantage=1e-12 * places.double()), 3)
    torch.testing.assert_close(small.advantages(), torch.tensor([-1.5, 0.0, 1.5]).double().mul((2 / 3) ** 0.5), rtol=0.02, atol=0)  # fmt: skip # noqa: E501


def test_images_that_differ_by_rounding_are_no_pair():
    near = torch.nextafter(torch.tensor(0.3), torch.tensor(1.0)).item()
    one = Rollout(
        Cond({}, torch.zeros(4, dtype=torch.int64), 1.0),
        Draw(0, 1, ("a",) * 4, (0,) * 4, (0, 1, 2, 3)),
        reward=torch.tensor([0.3, near, 0.5, 0.3]),
        group=torch.tensor([0, 0, 0, 0]),
    )
    assert pairs(one, "all") == ([2, 2, 2], [1, 0, 3])
    assert pairs(replace(one, group=torch.tensor([0, 0, 1, 2])), "best-worst") == ([], [])


def test_what_is_standardised_needs_a_spread_and_may_have_any_unit():
    def parts(values):
        return {"a": torch.tensor(values)}

    def made():
        return Combination("standardise(a)", parse("standardise(a)"), {"a": wrap(lambda x, p: x)})

    for values in ([0.3] * 7, [123456.7] * 3, [1e30] * 2, [1e-30] * 5, [123456.7, 123456.71], [5.0]):
        with pytest.raises(RewardError, match="leave standardise out"):
            made().measure(parts(values))
        with pytest.raises(RewardError, match="no deviation to measure mixtures in"):
            standing(torch.tensor(values), torch.tensor(values), "a")
    for unit, offset in ((1e-30, 0), (1e-9, 0), (1e30, 0), (1.0, 123456.0)):
        combined = made()
        values = [offset + unit * value for value in (1.0, 2.0, 3.0, 6.0)]
        combined.measure(parts(values))
        found = combined.combine(parts(values))
        torch.testing.assert_close(found, torch.tensor([-2.0, -1.0, 0.0, 3.0]) / 3.5**0.5, rtol=1e-5, atol=1e-5)
        assert found.dtype == torch.float32
