"""Adapters that act at some of a sampler's steps only (AlignProp Fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

from torch import Tensor

from tastemaker.diffusion.model import Model
from tastemaker.diffusion.process import Grid
from tastemaker.models.lora import adapters_off
from tastemaker.types import Cond


def switched(model: Model, grid: Grid, mask: Sequence[bool]) -> Model:
    """`model` with its adapters on at the steps of `grid` that `mask` [T] says, and off at the others.

    It tells steps by their times, which are all different in a grid; it is asked for rows of one time, as `sample`
    does.
    """
    assert len(mask) == len(grid)
    times = {int(time) for time, on in zip(grid.times.tolist(), mask, strict=True) if on}
    return cast(Model, _Switched(model, frozenset(times)))


class _Switched:
    """Everything is the inner model's, but for `denoise`."""

    def __init__(self, inner: Model, times: frozenset[int]) -> None:
        self._inner = inner
        self._times = times

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        with nullcontext() if int(t[0]) in self._times else adapters_off(self._inner.network):
            return self._inner.denoise(x, t, cond)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
