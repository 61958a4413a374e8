"""Classifier-free guidance, which every family of models has."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tastemaker.diffusion.process import Process
from tastemaker.types import Cond


def guided_x0(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor], process: Process, x: Tensor, t: Tensor, cond: Cond
) -> Tensor:
    """Guided estimate of x_0 [N,*D] in float64, from one pass of `predict` (x, t, text) over both halves."""
    if cond.guidance == 1:
        return process.x0(predict(x, t, cond.text).double(), x.double(), t)
    empty = cond.empty.expand_as(cond.text)
    both = predict(torch.cat([x, x]), torch.cat([t, t]), torch.cat([empty, cond.text])).double()
    unconditional, conditional = both.chunk(2)
    return process.x0(unconditional + cond.guidance * (conditional - unconditional), x.double(), t)
