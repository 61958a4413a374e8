"""What every importance-sampled method logs about its ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from tastemaker.types import Metrics


def ratio_metrics(log_ratio: Tensor, clip: float | None) -> Metrics:
    """Metrics [N] of log-ratios [N]: |ratio - 1|, whether it left the clip range, and half its square (k2)."""
    log_ratio = log_ratio.detach()
    off = (log_ratio.exp() - 1).abs()
    metrics = {"ratio_deviation": off, "approx_kl": 0.5 * log_ratio.square()}
    return metrics if clip is None else metrics | {"clip_fraction": (off > clip).float()}
