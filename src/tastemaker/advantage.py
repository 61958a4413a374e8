"""From rewards to advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


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
