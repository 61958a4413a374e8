"""Advantages against numbers worked out by hand and properties that must hold for any rewards."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tastemaker.algorithms.advantage import (
    PromptStatistics,
    RecentRounds,
    against_base,
    boltzmann,
    decoupled,
    gae,
    group_relative,
    percentile,
    standardise,
    step_weights,
)
from tastemaker.algorithms.dpo import DPO
from tastemaker.algorithms.nft import NFT
from tastemaker.algorithms.selection import BestWorst, NonZero
from tastemaker.config.schema import Advantage, Config, Sampling
from tastemaker.diffusion.process import Grid
from tastemaker.diffusion.sde import ddim
from tastemaker.errors import ConfigError
from tastemaker.spread import differ, moments


def test_whole_round_by_hand():
    """(1, 2, 3, 6): mean 3, population variance (4 + 1 + 0 + 9) / 4 = 3.5, std 1.870829."""
    expected = [-1.069045, -0.534522, 0.0, 1.603567]
    assert standardise(torch.tensor([1.0, 2.0, 3.0, 6.0])).tolist() == pytest.approx(expected, abs=1e-6)


def test_prompts_use_the_round_until_they_have_enough_of_their_own():
    """Round one: a = (1, 3), b = (5, 7); nobody has 4 rewards yet, so mean 4, std sqrt((9+1+1+9)/4) = 2.236068.
    Round two: a = (2, 4): a's buffer is (1, 3, 2, 4): mean 2.5, std sqrt(5)/2 = 1.118034."""
    statistics = PromptStatistics(buffer=8, min_count=4)
    first = statistics.advantages(["a", "a", "b", "b"], torch.tensor([1.0, 3.0, 5.0, 7.0]))
    assert first.tolist() == pytest.approx([-3 / 2.236068, -1 / 2.236068, 1 / 2.236068, 3 / 2.236068], abs=1e-5)
    second = statistics.advantages(["a", "a"], torch.tensor([2.0, 4.0]))
    assert second.tolist() == pytest.approx([-0.5 / 1.118034, 1.5 / 1.118034], abs=1e-5)


def test_the_buffer_forgets_the_oldest():
    """buffer 2: after (10, 20) then (1, 3) only (1, 3) is left: mean 2, std 1."""
    statistics = PromptStatistics(buffer=2, min_count=2)
    statistics.advantages(["a", "a"], torch.tensor([10.0, 20.0]))
    assert statistics.advantages(["a", "a"], torch.tensor([1.0, 3.0])).tolist() == pytest.approx([-1, 1], abs=1e-5)
    assert statistics.past == {"a": [1.0, 3.0]}


def test_against_the_public_implementations_rule_in_numpy():
    """ddpo-pytorch stat_tracking.py, restated with numpy, over ten random rounds."""
    rng = np.random.default_rng(0)
    statistics, past = PromptStatistics(buffer=16, min_count=5), {}
    for _ in range(10):
        prompts = rng.choice(["a", "b", "c"], size=7).tolist()
        rewards = rng.normal(size=7).astype(np.float32)
        expected = np.empty(7)
        for prompt in set(prompts):
            chosen = np.array([p == prompt for p in prompts])
            past[prompt] = (past.get(prompt, []) + rewards[chosen].tolist())[-16:]
            base = np.array(past[prompt]) if len(past[prompt]) >= 5 else rewards.astype(np.float64)
            expected[chosen] = (rewards[chosen] - base.mean()) / (base.std() + 1e-6)
        got = statistics.advantages(prompts, torch.from_numpy(rewards))
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=12), st.floats(-100, 100), st.floats(0.5, 10))
def test_shift_and_scale_of_the_rewards_do_not_matter(values, shift, scale):
    reward = torch.tensor(values, dtype=torch.float64)
    if reward.std(correction=0) < 1e-2:
        return
    changed = standardise(reward * scale + shift)
    torch.testing.assert_close(changed, standardise(reward), atol=1e-4, rtol=1e-4)


def test_equal_rewards_have_no_advantage():
    assert standardise(torch.full((4,), 3.0)).tolist() == [0, 0, 0, 0]
    assert PromptStatistics(4, 2).advantages(["a"] * 4, torch.full((4,), 3.0)).tolist() == [0, 0, 0, 0]


def test_recent_rounds_by_hand():
    """history 1: this round and the one before. Sample deviations, as torch's default.

    Round 1: a = (1, 3): mean 2, std sqrt(2); b = (10,) alone: the round (1, 3, 10) has mean 14/3 and variance
    (13.4444 + 2.7778 + 28.4444) / 2 = 22.3333, so (10 - 4.666667) / 4.725816 = 1.128553.
    Round 2: a = (5,): (1, 3, 5), mean 3, std 2. Round 3: a = (6, 8): round 1 is forgotten: (5, 6, 8), mean 19/3,
    variance (1.7778 + 0.1111 + 2.7778) / 2 = 2.3333.
    """
    statistics = RecentRounds(history=1, min_count=2)
    first = statistics.advantages(["a", "a", "b"], torch.tensor([1.0, 3.0, 10.0]), round=1)
    assert first.tolist() == pytest.approx([-0.7071068, 0.7071068, 1.128553], abs=1e-5)
    assert statistics.advantages(["a"], torch.tensor([5.0]), round=2).tolist() == pytest.approx([1.0], abs=1e-6)
    third = statistics.advantages(["a", "a"], torch.tensor([6.0, 8.0]), round=3)
    assert third.tolist() == pytest.approx([-0.3333333 / 1.527525, 1.6666667 / 1.527525], abs=1e-5)
    assert statistics.past == {"a": [5.0, 6.0, 8.0]}  # b, last seen in round 1, is gone altogether
    assert statistics.rounds == {"a": [2, 3, 3]}


def test_recent_rounds_against_the_public_codes_rule_in_numpy():
    """B2-DiffuRL's code with 8 past rounds and the present one; a prompt of fewer than 4 rewards takes the round."""
    rng = np.random.default_rng(1)
    statistics, seen, fallbacks = RecentRounds(history=8, min_count=4), [], 0
    for number in range(1, 25):
        prompts, rewards = rng.choice(["a", "b", "c", "d"], size=3).tolist(), rng.normal(size=3)
        seen += [(number, prompt, reward) for prompt, reward in zip(prompts, rewards, strict=True)]
        expected = []
        for prompt, reward in zip(prompts, rewards, strict=True):
            own = [r for n, p, r in seen if p == prompt and number - 8 <= n]
            base = np.array(own if len(own) >= 4 else rewards)
            fallbacks += len(own) < 4
            expected.append((reward - base.mean()) / base.std(ddof=1))
        got = statistics.advantages(prompts, torch.from_numpy(rewards), number)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)
    assert 0 < fallbacks < len(seen)


def test_group_relative_by_hand():
    """Group 7: (1, 3): mean 2, std 1, so -+1 / 1.0001. Group 4 has no spread: exactly 0, also where its mean is
    not a binary fraction. With the round's std: (1, 0.1, 3, 0.1, 0.1), mean 0.86, variance 1.2664."""
    reward, group = torch.tensor([1.0, 0.1, 3.0, 0.1, 0.1]), [7, 4, 7, 4, 4]
    own = group_relative(reward, group)
    assert own.tolist() == pytest.approx([-1 / 1.0001, 0, 1 / 1.0001, 0, 0], abs=1e-6)
    assert own[[1, 3, 4]].tolist() == [0.0, 0.0, 0.0]
    whole = group_relative(reward, group, "round")
    assert whole.tolist() == pytest.approx([-1 / 1.125445, 0, 1 / 1.125445, 0, 0], abs=1e-4)
    assert whole[[1, 3, 4]].tolist() == [0.0, 0.0, 0.0]


def test_decoupled_by_hand():
    """Two groups of two; rewards a = (0, 1, 2, 2) and b = (5, 5, 1, 9), weights 1 and 0.5.

    In their groups a is (-1, 1, 0, 0) and b (0, 0, -1, 1), so that the sums are (-1, 1, -0.5, 0.5), whose deviation is
    sqrt(2.5 / 4) = 0.790569. Of the weighted sums of the rewards, (2.5, 3.5, 2.5, 6.5), GRPO would make -1, 1, -1, 1:
    the second group's difference in b is eight times the first's in a, and its weight is lost.
    """
    a, b = torch.tensor([0.0, 1.0, 2.0, 2.0]), torch.tensor([5.0, 5.0, 1.0, 9.0])
    found = decoupled([(1.0, a), (0.5, b)], [0, 0, 1, 1])
    assert found.tolist() == pytest.approx([value / 0.790569 for value in (-1, 1, -0.5, 0.5)], abs=1e-3)
    assert group_relative(a + 0.5 * b, [0, 0, 1, 1]).tolist() == pytest.approx([-1, 1, -1, 1], abs=1e-3)
    # The unit of a reward is of no account.
    other = decoupled([(1.0, 1e6 * a), (0.5, 1e-6 * b)], [0, 0, 1, 1])
    torch.testing.assert_close(other, found, rtol=0.02, atol=0)
    # A group whose rewards are all the same has exactly 0, and is left out.
    flat = decoupled([(1.0, torch.tensor([0.0, 1.0, 2.0, 2.0])), (0.3, torch.tensor([5.0, 5.0, 7.0, 7.0]))], [0, 0, 1, 1])  # fmt: skip # noqa: E501
    assert flat[2:].tolist() == [0, 0]
    assert NonZero().chosen(flat, [0, 0, 1, 1]).tolist() == [True, True, False, False]


def test_decoupled_against_trls_rule_in_numpy():
    """trl's `normalize_then_sum`: each reward's (r - mean) / (std + 1e-4) in its group, weights, sum, and the same once
    more over the batch; there with sample deviations, which is another factor for all."""
    rng = np.random.default_rng(0)
    rewards, weights = rng.normal(size=(3, 24)) * [[1.0], [5.0], [0.2]], [1.0, 0.4, -2.0]
    summed = np.zeros(24)
    for weight, own in zip(weights, rewards.reshape(3, 6, 4), strict=True):
        mean, std = own.mean(axis=1, keepdims=True), own.std(axis=1, keepdims=True)
        summed += weight * ((own - mean) / (std + 1e-4)).ravel()
    expected = (summed - summed.mean()) / (summed.std() + 1e-4)
    terms = list(zip(weights, torch.from_numpy(rewards), strict=True))
    found = decoupled(terms, np.repeat(range(6), 4).tolist())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_boltzmann_by_hand():
    """beta ln 2: weights in powers of two. Rewards (0, 1) of one prompt: (1/3, 2/3) times 2. (2, 2): both 1.
    Over the whole round (0, 1, 2, 2): (1, 2, 4, 4) / 11 times 4."""
    reward, beta = torch.tensor([0.0, 2.0, 1.0, 2.0]), float(np.log(2))
    own = boltzmann(reward, [0, 1, 0, 1], beta)
    assert own.tolist() == pytest.approx([2 / 3, 1.0, 4 / 3, 1.0])
    assert boltzmann(reward, None, beta).tolist() == pytest.approx([4 / 11, 16 / 11, 8 / 11, 16 / 11])
    huge = boltzmann(torch.tensor([1e4, 0.0]), None, 1.0)
    assert huge.tolist() == [2.0, 0.0]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.73, 0.9])
def test_percentile_is_numpys(share):
    """With ties, per prompt and across the round."""
    rng = np.random.default_rng(2)
    reward, group = rng.integers(0, 12, size=60) / 7.0, rng.integers(0, 4, size=60)
    expected = np.zeros(60)
    for number in range(4):
        own = group == number
        expected[own] = reward[own] >= np.percentile(reward[own], 100 * share)
    assert percentile(torch.from_numpy(reward), group.tolist(), share).tolist() == expected.tolist()
    whole = reward >= np.percentile(reward, 100 * share)
    assert percentile(torch.from_numpy(reward), None, share).tolist() == whole.astype(float).tolist()
    assert 0 < expected.sum() < 60


def test_gae_by_hand():
    """gamma 1, lambda 0.95, R = (-0.1, -0.2, 1), V = (0.5, 0.4, 0.7).

    delta = (-0.1 + 0.4 - 0.5, -0.2 + 0.7 - 0.4, 1 - 0.7) = (-0.2, 0.1, 0.3).
    A_2 = 0.3; A_1 = 0.1 + 0.95 * 0.3 = 0.385; A_0 = -0.2 + 0.95 * 0.385 = 0.16575. Returns: A + V.
    """
    reward, value = torch.tensor([[-0.1, -0.2, 1.0]]).double(), torch.tensor([[0.5, 0.4, 0.7]]).double()
    advantage, target = gae(reward, value, 1.0, 0.95)
    assert advantage[0].tolist() == pytest.approx([0.16575, 0.385, 0.3])
    assert target[0].tolist() == pytest.approx([0.66575, 0.785, 1.0])
    # lambda 0: the deltas alone; gamma 0.9: (-0.1 + 0.36 - 0.5, -0.2 + 0.63 - 0.4, 0.3).
    assert gae(reward, value, 0.9, 0.0)[0][0].tolist() == pytest.approx([-0.24, 0.03, 0.3])


def test_gae_without_discount_is_what_is_still_to_come_less_the_value():
    """gamma = lambda = 1: terminal reward and later penalties, minus V_i."""
    reward, value = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).unbind()
    advantage, target = gae(reward, value, 1.0, 1.0)
    to_come = torch.tensor(np.cumsum(reward.numpy()[:, ::-1], axis=1)[:, ::-1].copy())
    torch.testing.assert_close(advantage, to_come - value)
    torch.testing.assert_close(target, to_come)


@pytest.mark.parametrize(("images", "kept"), [(10, 1), (20, 2), (32, 4), (40, 4), (26, 3)])
def test_how_many_images_the_percentile_keeps(images, kept):
    """n - ceil(0.9 (n - 1)) of n different rewards: 4 of the public code's 32, and a tenth of a multiple of 10."""
    rewards = torch.randperm(images, generator=torch.Generator().manual_seed(1)).float()
    assert int(percentile(rewards, None, 0.9).sum()) == kept
    assert kept == int((rewards.numpy() >= np.percentile(rewards.numpy(), 90)).sum())


# ---------------------------------------------------------------- rewards that do not differ

FLAT = (0.0, 0.1, 0.3, -0.1, 7.3, 123456.7, -123456.7, 1e-30, 1e30, 3e38)
"""Most are no binary fractions, so that a float32 mean of several is not the value itself."""
COUNTS = (1, 2, 3, 6, 7, 12, 48, 257)


def normalised(reward, how):
    """Advantages by each of the ways; all images are of one prompt and one group."""
    prompts = ["a"] * len(reward)
    return {
        "round": lambda: standardise(reward),
        "per-prompt": lambda: PromptStatistics(32, 2).advantages(prompts, reward),
        "per-prompt, a buffer of 2": lambda: PromptStatistics(2, 2).advantages(prompts, reward),
        "per-prompt, too few": lambda: PromptStatistics(1000, 999).advantages(prompts, reward),
        "windowed": lambda: RecentRounds(8, 2).advantages(prompts, reward, 1),
        "windowed, too few": lambda: RecentRounds(8, 999).advantages(prompts, reward, 1),
        "group": lambda: group_relative(reward, [0] * len(reward)),
        "group, the round's spread": lambda: group_relative(reward, [0] * len(reward), "round"),
        "decoupled": lambda: decoupled([(1.0, reward)], [0] * len(reward)),
        "groups of two": lambda: group_relative(reward, [place // 2 for place in range(len(reward))]),
        "base": lambda: against_base(reward, *moments(reward)),
    }[how]()


WAYS = (
    "round", "per-prompt", "per-prompt, a buffer of 2", "per-prompt, too few", "windowed", "windowed, too few", "group",
    "group, the round's spread", "groups of two", "base",
)  # fmt: skip


@pytest.mark.parametrize("how", WAYS)
def test_rewards_that_are_the_same_have_no_advantage(how):
    """Exactly 0, so that selections see it; also where they differ by what float32 cannot help, up to 4 numbers on."""
    for value in FLAT:
        for count in COUNTS:
            reward = torch.full((count,), value)
            assert not normalised(reward, how).any(), (value, count)
            rounded = reward.clone()
            for place in range(1, count):
                for _ in range(place % 4):
                    rounded[place] = torch.nextafter(rounded[place], torch.tensor(0.0))
            assert not normalised(rounded, how).any(), (value, count)


@pytest.mark.parametrize("how", [way for way in WAYS if way not in ("groups of two", "per-prompt, a buffer of 2")])
@pytest.mark.parametrize(("offset", "unit"), [(0, 1e-6), (1e-6, 1e-8), (0, 1e-30), (0, 1e30), (1e6, 4), (0.3, 1e-5)])
def test_rewards_that_differ_are_normalised_whatever_their_unit(how, offset, unit):
    """(1, 2, 3, 6) in some unit: mean 3, std sqrt(3.5) (sqrt(14/3) with the sample's): the public codes' eps of up to
    1e-4 would swallow a small one."""
    wanted = torch.tensor([-2.0, -1.0, 0.0, 3.0]) / (14 / 3 if how.startswith("windowed") else 3.5) ** 0.5
    reward = (offset + unit * torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)).float()
    torch.testing.assert_close(normalised(reward, how), wanted, rtol=0.012, atol=0.03 if offset else 1e-6)


def test_what_counts_as_rounding():
    """8 eps = 9.5e-7 of the largest magnitude, whatever the unit and the sign."""
    for unit in (1e-30, 1e-6, 1.0, -1.0, 1e30):
        assert not differ(unit * torch.tensor([1.0, 1 + 9e-7], dtype=torch.float64))
        assert differ(unit * torch.tensor([1.0, 1 + 1e-6], dtype=torch.float64))
        assert differ(unit * torch.tensor([0.0, 1e-6], dtype=torch.float64))
    assert not differ(torch.tensor([]))
    assert not differ(torch.tensor([5.0]))
    assert differ(torch.tensor([float("nan"), 1.0]))  # for the update's check to see
    assert moments(torch.full((7,), 123456.7))[1] == 0
    assert moments(torch.full((7,), 0.3))[0] == torch.tensor(0.3).item()
    assert moments(torch.tensor([1e30, 3e30])) == pytest.approx((2e30, 1e30))


def test_eps_is_the_public_codes_where_rewards_are_not_tiny():
    """Standard deviation 0.5, so that no eps is above a hundredth of it: (0, 1) is -+0.5 / (0.5 + eps)."""
    reward = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for how, eps in {"round": 1e-8, "per-prompt": 1e-6, "group": 1e-4}.items():
        assert normalised(reward, how)[1].item() == pytest.approx(0.5 / (0.5 + eps), rel=1e-12)


def test_a_prompt_whose_past_is_flat_is_compared_with_the_round():
    """A buffer of 2 has forgotten the first of three rewards (9, 1, 1), and holds two that are equal: the round's mean
    11/3 and std sqrt(128/9) = 3.7712 stand in. Without that, 8 / 1e-6."""
    found = PromptStatistics(2, 2).advantages(["a"] * 3, torch.tensor([9.0, 1.0, 1.0]))
    assert found.tolist() == pytest.approx([(9 - 11 / 3) / 3.771236, *[(1 - 11 / 3) / 3.771236] * 2], rel=1e-5)


def test_a_base_model_without_spread_leaves_the_rewards_own_unit():
    assert against_base(torch.tensor([0.0, 1.0]), 0.0, 0.0).tolist() == [0.0, 1.0]
    assert against_base(torch.tensor([3.0, 1.0]), 2.0, 0.5).tolist() == [2.0, -2.0]
    close = torch.nextafter(torch.tensor(123456.7), torch.tensor(0.0))
    assert against_base(torch.stack([close, torch.tensor(123457.7)]), 123456.703125, 0.0).tolist() == [0.0, 1.0]


def test_weights_of_rewards_that_are_the_same_are_all_1():
    """Also where beta times a rounding error would be millions; and in groups beside one that differs."""
    for value in FLAT:
        for count in COUNTS:
            reward = torch.full((count,), value)
            reward[-1] = torch.nextafter(reward[-1], torch.tensor(0.0))
            assert boltzmann(reward, None, 1.0).tolist() == [1.0] * count
            assert percentile(reward, None, 0.9).tolist() == [1.0] * count
    assert boltzmann(torch.tensor([7.3, 0.0, 7.3, 1.0]), [0, 1, 0, 1], 0.0).tolist() == [1.0] * 4
    assert percentile(torch.tensor([7.3, 0.0, 7.3, 1.0]), [0, 1, 0, 1], 0.9).tolist() == [1.0, 0.0, 1.0, 1.0]


def test_nothing_is_selected_of_rewards_that_are_the_same():
    for value in FLAT:
        advantage, group = normalised(torch.full((6,), value), "windowed"), [0, 0, 0, 1, 1, 1]
        assert not BestWorst(0.5).chosen(advantage, group).any()
        assert not NonZero().chosen(advantage, group).any()


def test_weights_of_the_steps_of_a_flow_by_hand():
    """sigma is 1, 0.8, 0.4, 0 and alpha = 1 - sigma; std = sigma' sqrt(1 - (alpha sigma' / alpha' sigma)^2).

    0.8, since alpha is 0; 0.4 sqrt(1 - (0.2 * 0.4 / (0.6 * 0.8))^2) = 0.4 sqrt(35 / 36) = 0.394405; and 0 in the last
    step. The mean of the two with noise is 0.597203. dt is 0.2 and 0.4: 5 and 2.5, with the mean 3.75.
    """
    sigma = torch.tensor([1.0, 0.8, 0.4, 0.0], dtype=torch.float64)
    grid = Grid(1000 * sigma[:-1], 1 - sigma[:-1], sigma[:-1], 1 - sigma[1:], sigma[1:])
    found = step_weights("noise", ddim(grid, 1.0))
    assert found.tolist() == pytest.approx([0.8 / 0.597203, 0.394405 / 0.597203, 0], abs=1e-5)
    assert step_weights("inverse-dt", ddim(grid, 1.0)).tolist() == pytest.approx([4 / 3, 2 / 3, 0], abs=1e-12)


@pytest.mark.parametrize("algorithm", [DPO(), NFT()], ids=lambda algorithm: algorithm.name)
def test_weights_of_steps_need_advantages_of_steps(algorithm):
    with pytest.raises(ConfigError, match=f"the algorithm {algorithm.name} has no advantages of steps"):
        Config(algorithm=algorithm, advantage=Advantage(step_weights="noise"), sampling=Sampling(per_prompt=2))
