"""The mathematics of the losses: small pure functions, unreduced, float32 or better."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

Reduction = Literal["mean", "sum"]


def gaussian_logp(x: Tensor, mean: Tensor, std: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Log-density [N] of x [N,*D] under a Gaussian; std broadcasts and must be greater than 0.

    `mean` averages over the elements of a latent, as DDPO and nearly all public code do, and `sum` is the joint
    log-probability (thesis §5.3). Clip ranges belong to one of them: a ratio within 1e-4 under `mean` is a joint
    ratio within exp(1e-4 D), for SD at 512 pixels (D = 16384) about [0.19, 5.2].
    """
    per_element = -((x - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
    flat = per_element.flatten(1)
    return flat.mean(dim=1) if reduction == "mean" else flat.sum(dim=1)


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's clipped objective as a loss [N]: max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) (DDPO A.1)."""
    return (-advantage * ratio).maximum(-advantage * ratio.clamp(1 - clip, 1 + clip))


def score_function(logp: Tensor, advantage: Tensor) -> Tensor:
    """-A log p [N], whose gradient is the score-function estimator (DDPO Eq. 3)."""
    return -advantage * logp


def gaussian_kl(mean: Tensor, mean_ref: Tensor, std: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Exact KL [N] between two Gaussians [N,*D] of the same std: |mean difference|^2 / (2 std^2)."""
    per_element = (mean - mean_ref) ** 2 / (2 * std**2)
    flat = per_element.flatten(1)
    return flat.mean(dim=1) if reduction == "mean" else flat.sum(dim=1)
