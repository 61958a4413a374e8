"""Rewards of plain functions and of loaded rewards, in one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tastemaker.rewards.base import Reward, RewardFunction, as_reward, score


def total(reward: RewardFunction | Reward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The checked rewards [B]."""
    return score(as_reward(reward), images, prompts).total
