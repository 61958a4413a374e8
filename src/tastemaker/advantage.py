"""From rewards to advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tastemaker.selection import members


def standardise(reward: Tensor, eps: float = 1e-8) -> Tensor:
    """(r - mean) / (std + eps) over the whole round, [B]; population std."""
    return (reward - reward.mean()) / (reward.std(correction=0) + eps)


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
        """Advantages [B] of rewards [B]; A = (r - mean) / (std + 1e-6) with the population std."""
        values = reward.double().tolist()
        for prompt, value in zip(prompts, values, strict=True):
            self.past.setdefault(prompt, []).append(value)
        for prompt in set(prompts):
            self.past[prompt] = self.past[prompt][-self.buffer :]
        whole = torch.tensor(values, dtype=torch.float64)
        result = torch.empty_like(whole)
        for index, prompt in enumerate(prompts):
            own = self.past[prompt]
            base = torch.tensor(own, dtype=torch.float64) if len(own) >= self.min_count else whole
            result[index] = (whole[index] - base.mean()) / (base.std(correction=0) + 1e-6)
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
        """Advantages [B] of rewards [B]; A = (r - mean) / (std + 1e-8) with the sample std, as in the public code."""
        whole = reward.double()
        for prompt, value in zip(prompts, whole.tolist(), strict=True):
            self.past.setdefault(prompt, []).append(value)
            self.rounds.setdefault(prompt, []).append(round)
        for prompt in list(self.past):
            recent = [place for place, when in enumerate(self.rounds[prompt]) if when >= round - self.history]
            self.past[prompt] = [self.past[prompt][place] for place in recent]
            self.rounds[prompt] = [self.rounds[prompt][place] for place in recent]
            if not recent:
                del self.past[prompt], self.rounds[prompt]
        result = torch.empty_like(whole)
        for index, prompt in enumerate(prompts):
            own = self.past[prompt]
            base = torch.tensor(own, dtype=torch.float64) if len(own) >= max(2, self.min_count) else whole
            result[index] = (whole[index] - base.mean()) / (base.std() + 1e-8)
        return result.to(reward)


def group_relative(reward: Tensor, group: Sequence[int], spread: Literal["group", "round"] = "group") -> Tensor:
    """(r - mean of its group) / (std + 1e-4), [B] (GRPO; Flow-GRPO's eps).

    The std is the group's own or the whole round's. Where a group's rewards are all the same its advantages are
    exactly 0, so that they can be left out (`selection.NonZero`).
    """
    values, whole = reward.double(), reward.double().std(correction=0)
    result = torch.zeros_like(values)
    for places in members(group):
        own = values[places]
        if (own != own[0]).any():
            std = own.std(correction=0) if spread == "group" else whole
            result[places] = (own - own.mean()) / (std + 1e-4)
    return result.to(reward)


def boltzmann(reward: Tensor, group: Sequence[int] | None, beta: float) -> Tensor:
    """Weights [B]: softmax of beta r over each group (or all of them), times its size, so that their mean is 1.

    RWR (DDPO §4.2, A.2); the public code calls beta a temperature, which is its inverse.
    """
    values = reward.double()
    result = torch.empty_like(values)
    for places in members(group if group is not None else [0] * len(reward)):
        result[places] = len(places) * torch.softmax(beta * values[places], dim=0)
    return result.to(reward)


def percentile(reward: Tensor, group: Sequence[int] | None, share: float) -> Tensor:
    """Weights [B]: 1 where the reward is at least the percentile `share` of its group, else 0 (RWR-sparse).

    The percentile is interpolated linearly, as numpy's.
    """
    values = reward.double()
    result = torch.empty_like(values)
    for places in members(group if group is not None else [0] * len(reward)):
        own = values[places]
        result[places] = (own >= torch.quantile(own, share)).double()
    return result.to(reward)


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
