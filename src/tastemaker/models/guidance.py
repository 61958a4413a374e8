"""Classifier-free guidance, which every family of models has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from tastemaker.diffusion.process import Process
from tastemaker.types import Cond


def guided_x0(
    predict: Callable[[Tensor, Tensor, Cond], Tensor], process: Process, x: Tensor, t: Tensor, cond: Cond
) -> Tensor:
    """Guided estimate of x_0 [N,*D] in float64, from one pass of `predict` (x, t, cond) over both halves."""
    if cond.guidance == 1:
        return process.x0(predict(x, t, cond).double(), x.double(), t)
    halves = replace(cond, index=torch.cat([cond.unconditional().index, cond.index]))
    both = predict(torch.cat([x, x]), torch.cat([t, t]), halves).double()
    unconditional, conditional = both.chunk(2)
    return process.x0(unconditional + cond.guidance * (conditional - unconditional), x.double(), t)
