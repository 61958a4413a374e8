"""Adapters that act at some of a sampler's steps only (AlignProp Fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from tastemaker.diffusion.model import Denoiser, Model
from tastemaker.diffusion.sde import Sde
from tastemaker.models.lora import adapters_off
from tastemaker.types import Cond


def switched(model: Model, sde: Sde, mask: Sequence[bool]) -> Denoiser:
    """`model` with its adapters on at the steps of `sde` that `mask` [T] says, and off at the others.

    It tells steps by their times, which are all different in a grid; it is asked for rows of one time, as `sample`
    does.
    """
    assert len(mask) == len(sde)
    times = {float(time) for time, on in zip(sde.grid.times.tolist(), mask, strict=True) if on}
    return _Switched(model, frozenset(times))


@dataclass(frozen=True)
class _Switched:
    model: Model
    times: frozenset[float]
    """At which the adapters are on."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.model.latent_shape

    @property
    def device(self) -> torch.device:
        return self.model.device

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        with nullcontext() if float(t[0]) in self.times else adapters_off(self.model.network):
            return self.model.denoise(x, t, cond)
