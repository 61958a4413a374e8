"""Whether values differ by more than rounding, and their mean and deviation."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 8 * torch.finfo(torch.float32).eps
"""Rewards arrive in float32: a difference of up to so much of the largest is taken for rounding, not for a spread."""


def differ(values: Tensor) -> bool:
    """Whether values [B] differ by more than float32 rounding; values that are not finite do.

    The range is compared with the largest magnitude, so that the reward's unit does not matter: rewards of about 1e-6
    that differ by 1e-9 have a spread, and 123456.70 and 123456.71, the next number in float32, have none.
    """
    if not values.numel():
        return False
    low, high = values.double().aminmax()
    return not (high - low <= ROUNDING * torch.maximum(low.abs(), high.abs()))


def moments(values: Tensor, correction: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of values [B], in float64; the deviation is exactly 0 where they do not `differ`."""
    values = values.double()
    return values.mean().item(), values.std(correction=correction).item() if differ(values) else 0.0
