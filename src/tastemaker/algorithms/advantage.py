"""From rewards to advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tastemaker.algorithms.selection import members
from tastemaker.diffusion.sde import Sde
from tastemaker.spread import ROUNDING, differ, moments


def standardise(reward: Tensor, eps: float = 1e-8) -> Tensor:
    """(r - mean) / (std + eps) over the whole round, [B]; population std. 0 where the rewards do not `differ`."""
    return _normalised(reward.double(), reward, reward, eps).to(reward)


def against_base(reward: Tensor, mean: float, std: float) -> Tensor:
    """(r - mean) / std, [B], with the base model's mean and standard deviation (`moments`).

    Where the base model's rewards do not differ (std 0) there is no unit to divide by, and r - mean stays in the
    reward's own; it is 0 where the two are equal but for rounding.
    """
    off = reward.double() - mean
    if std > 0:
        return (off / std).to(reward)
    rounding = ROUNDING * reward.double().abs().clamp(min=abs(mean))
    return torch.where(off.abs() <= rounding, 0.0, off).to(reward)


def _normalised(values: Tensor, base: Tensor, whole: Tensor, eps: float, correction: int = 0) -> Tensor:
    """(values - mean) / (std + eps), [N] float64, with the mean and std of `base` [M]; 0 where `base` has no spread.

    `whole` are the round's rewards. They stand in for a base without spread that does not hold the values, and say how
    large a reward is: eps, an absolute number in the public codes, is kept to a hundredth of the std, or it would take
    the place of the std of rewards of about 1e-6.
    """
    mean, std = moments(base, correction)
    if not std and differ(torch.cat([base.double(), values])):
        mean, std = moments(whole, correction)
    if not std:
        return torch.zeros_like(values)
    return (values - mean) / (std + min(eps, 0.01 * max(std, moments(whole, correction)[1])))


def _indices_of(prompts: Sequence[str]) -> dict[str, list[int]]:
    """The indices of each prompt's images, prompts by first appearance."""
    found: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        found.setdefault(prompt, []).append(index)
    return found


@dataclass
class PromptStatistics:
    """Running statistics of each prompt's rewards (DDPO §4.4 and A.1).

    A ring buffer for each prompt. The new rewards enter first; then a prompt with fewer than `min_count` of them
    is normalised with the whole round's mean and std, and every other with its own.
    """

    buffer: int = 32
    min_count: int = 16
    past: dict[str, list[float]] = field(default_factory=dict)

    def advantages(self, prompts: Sequence[str], reward: Tensor) -> Tensor:
        """Advantages [B] of rewards [B]; A = (r - mean) / (std + 1e-6) with the population std.

        0 for a prompt whose rewards do not `differ`.
        """
        whole = reward.double().cpu()
        result = torch.empty_like(whole)
        for prompt, value in zip(prompts, whole.tolist(), strict=True):
            self.past.setdefault(prompt, []).append(value)
        for prompt, indices in _indices_of(prompts).items():
            own = self.past[prompt] = self.past[prompt][-self.buffer :]
            base = torch.tensor(own, dtype=torch.float64) if len(own) >= self.min_count else whole
            result[indices] = _normalised(whole[indices], base, whole, 1e-6)
        return result.to(reward)


@dataclass
class RecentRounds:
    """Statistics of each prompt's rewards over this round and the `history` before it (B2-DiffuRL D.1).

    A prompt with fewer than `min_count` rewards in them is normalised with the whole round's mean and std, where the
    public code divides by the NaN of a single value.
    """

    history: int = 8
    min_count: int = 2
    past: dict[str, list[float]] = field(default_factory=dict)
    rounds: dict[str, list[int]] = field(default_factory=dict)
    """The round of each value in `past`."""

    def advantages(self, prompts: Sequence[str], reward: Tensor, round: int) -> Tensor:
        """Advantages [B] of rewards [B]; A = (r - mean) / (std + 1e-8) with the sample std, as in the public code.

        0 for a prompt whose rewards do not `differ`, and for an image that is alone.
        """
        whole = reward.double().cpu()
        for prompt, value in zip(prompts, whole.tolist(), strict=True):
            self.past.setdefault(prompt, []).append(value)
            self.rounds.setdefault(prompt, []).append(round)
        for prompt in list(self.past):
            recent = [index for index, when in enumerate(self.rounds[prompt]) if when >= round - self.history]
            self.past[prompt] = [self.past[prompt][index] for index in recent]
            self.rounds[prompt] = [self.rounds[prompt][index] for index in recent]
            if not recent:
                del self.past[prompt], self.rounds[prompt]
        result = torch.empty_like(whole)
        for prompt, indices in _indices_of(prompts).items():
            own = self.past[prompt]
            base = torch.tensor(own, dtype=torch.float64) if len(own) >= max(2, self.min_count) else whole
            result[indices] = _normalised(whole[indices], base, whole, 1e-8, correction=1)
        return result.to(reward)


def group_relative(reward: Tensor, group: Sequence[int], spread: Literal["group", "round"] = "group") -> Tensor:
    """(r - mean of its group) / (std + 1e-4), [B] (GRPO; Flow-GRPO's eps).

    The std is the group's own or the whole round's. Where a group's rewards do not `differ` its advantages are
    exactly 0, so that they can be left out (`selection.NonZero`).
    """
    values, whole = reward.double(), moments(reward)[1]
    result = torch.zeros_like(values)
    for indices in members(group):
        own = values[indices]
        mean, std = moments(own)
        if std:
            std = std if spread == "group" else whole
            result[indices] = (own - mean) / (std + min(1e-4, 0.01 * whole))
    return result.to(reward)


def decoupled(
    terms: Sequence[tuple[float, Tensor]], group: Sequence[int], spread: Literal["group", "round"] = "group"
) -> Tensor:
    """The advantages [B] of a weighted sum of rewards, each normalised by itself (GDPO, Liu et al. 2026, §3.1).

    `terms` are the weights and rewards [B]. Each reward is normalised in its group as `group_relative` does, and the
    weighted sum of them over the whole round, as `standardise` does. An image whose rewards all stand at their group's
    mean has exactly 0, so that groups without spread can be left out (`selection.NonZero`).
    """
    summed = torch.stack([weight * group_relative(reward.double(), group, spread) for weight, reward in terms]).sum(0)
    return torch.where(summed == 0, summed, standardise(summed, 1e-4)).to(terms[0][1])


def boltzmann(reward: Tensor, group: Sequence[int] | None, beta: float) -> Tensor:
    """Weights [B]: softmax of beta r over each group (or all of them), times its size, so that their mean is 1.

    All exactly 1 where a group's rewards do not `differ`. RWR (DDPO §4.2, A.2); the public code calls beta a
    temperature, which is its inverse.
    """
    values = reward.double()
    result = torch.ones_like(values)
    for indices in members(group if group is not None else [0] * len(reward)):
        own = values[indices]
        if differ(own):
            result[indices] = len(indices) * torch.softmax(beta * own, dim=0)
    return result.to(reward)


def percentile(reward: Tensor, group: Sequence[int] | None, share: float) -> Tensor:
    """Weights [B]: 1 where the reward is at least the percentile `share` of its group, else 0 (RWR-sparse).

    The percentile is interpolated linearly, as numpy's. All 1 where a group's rewards do not `differ`.
    """
    values = reward.double()
    result = torch.ones_like(values)
    for indices in members(group if group is not None else [0] * len(reward)):
        own = values[indices]
        if differ(own):
            result[indices] = (own >= torch.quantile(own, share)).double()
    return result.to(reward)


def step_weights(kind: Literal["noise", "inverse-dt"], sde: Sde) -> Tensor:
    """[T] float64 weights of the sampler's steps, by which their advantages are multiplied; 0 where there is no noise.

    `noise`: in proportion to the deviation of the step's noise (TempFlow-GRPO). `inverse-dt`: to 1 / dt, dt being how
    far sigma falls in the step (GRPO-Guard), which for flows is the length of the step in time. Their mean over the
    steps that have noise is 1.
    """
    steps = sde.stochastic()
    found = torch.zeros(len(sde), dtype=torch.float64)
    if kind == "noise":
        origin = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        found[steps] = torch.stack([sde.step(origin, origin, step)[1].double().mean() for step in steps])
    else:
        found[steps] = (sde.grid.sigma - sde.grid.sigma_next).double().cpu()[steps].reciprocal()
    return found / found[steps].mean()


def gae(reward: Tensor, value: Tensor, discount: float, smoothing: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns, both [B,W], of rewards and values [B,W] (thesis §5.3).

    delta_i = R_i + gamma V_{i+1} - V_i with V = 0 after the last step; A_i = delta_i + gamma lambda A_{i+1}; the
    returns are A + V.
    """
    steps = value.shape[1]
    advantage = torch.zeros_like(value)
    last = value.new_zeros(len(value))
    for i in reversed(range(steps)):
        after = value[:, i + 1] if i + 1 < steps else torch.zeros_like(last)
        last = reward[:, i] + discount * after - value[:, i] + discount * smoothing * last
        advantage[:, i] = last
    return advantage, advantage + value
