"""Advantages against numbers worked out by hand and properties that must hold for any rewards."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tastemaker.advantage import PromptStatistics, standardise


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
