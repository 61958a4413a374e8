"""Advantages against numbers worked out by hand and properties that must hold for any rewards."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tastemaker.advantage import (
    PromptStatistics,
    RecentRounds,
    boltzmann,
    gae,
    group_relative,
    percentile,
    standardise,
)


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
    """methods.md §1.7, restated with numpy, over ten random rounds."""
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
    """methods.md §5.4 with 8 past rounds and the present one; a prompt of fewer than 4 rewards takes the round."""
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
    """methods.md §12: gamma = lambda = 1: terminal reward and later penalties, minus V_i."""
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
