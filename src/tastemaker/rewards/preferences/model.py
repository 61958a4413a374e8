"""A trained reward model: one backbone and one or several heads, whose rewards are standardised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tastemaker.rewards.preferences.architecture import Architecture
from tastemaker.rewards.preferences.backbones import Backbone


@dataclass(frozen=True)
class Scale:
    """(r - mean) / std of each member, and of the mean of their rewards (thesis eq. 5.2)."""

    members: tuple[tuple[float, float], ...]
    """Mean and standard deviation of each member's rewards on the images that were chosen for it."""
    mean: float = 0.0
    std: float = 1.0
    """The same of the mean over members, which varies less than each of them."""


@dataclass(frozen=True)
class RewardModel:
    """What `tastemaker reward train` made, ready to score."""

    architecture: Architecture
    backbone: Backbone
    heads: tuple[nn.Module, ...]
    scale: Scale
    guidance: float = 1.0
    """s in r_u + s (r_c - r_u): how much the prompt counts (thesis section 5.2); 1 asks with the prompt alone."""

    def raw(self, x: Tensor, prompts: Sequence[str], guidance: float | None = None) -> Tensor:
        """[M,N] of the M members, as they come, for inputs [N,...] of the backbone; differentiable in them."""
        s = self.guidance if guidance is None else guidance
        found = self._conditional(x, prompts)
        if s == 1:
            return found
        without = self._conditional(x, [""] * len(prompts))
        return without + s * (found - without)

    def members(self, x: Tensor, prompts: Sequence[str], guidance: float | None = None) -> Tensor:
        """[M,N] standardised: their mean over M is the reward, their standard deviation its uncertainty."""
        raw = self.raw(x, prompts, guidance)
        mean, std = (
            torch.tensor(column, device=raw.device)[:, None] for column in zip(*self.scale.members, strict=True)
        )
        return ((raw - mean) / std - self.scale.mean) / self.scale.std

    def _conditional(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        image = self.backbone.images(x, prompts, self.backbone.times[0])
        text = self.backbone.texts(prompts)
        return torch.stack([head(image, text) for head in self.heads])


def spread(members: Tensor) -> Tensor:
    """[N] standard deviation over the members [M,N], with M - 1; 0 for a single one."""
    return members.std(dim=0) if len(members) > 1 else torch.zeros_like(members[0])
