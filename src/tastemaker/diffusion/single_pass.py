"""Sampling that takes each image's gradient of its own log-probability at once: a policy gradient in one pass.

The score function's gradient is a sum over images, A_i times the gradient of log p_i (DDPO, Eq. 3). At the weights that
sampled, the second factor is known while an image is sampled, when its reward and so A_i are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tastemaker.diffusion.losses import Reduction
from tastemaker.diffusion.model import Denoiser
from tastemaker.diffusion.sampler import LocalSampler, OnStep, batches, do_nothing, transition
from tastemaker.diffusion.sde import Sde
from tastemaker.types import Cond, Draw, Rollout

if TYPE_CHECKING:
    from tastemaker.models.network_weights import NetworkWeights


@dataclass(frozen=True)
class SinglePassSampler:
    """The model in this process, with the gradients of its kept steps: a `Sampler`, as LocalSampler for other steps."""

    local: LocalSampler
    weights: NetworkWeights
    """Of the sampler's model."""
    rows: int = 8
    """Images in one forward pass with a graph."""
    step_weights: Tensor | None = None
    """[T] by which the gradients of each sampler step are multiplied; None multiplies none."""

    def __call__(self, draw: Draw, cond: Cond, keep: Sequence[int] = (), on_step: OnStep = do_nothing) -> Rollout:
        found: dict[str, Tensor] = {}

        def with_gradients(
            model: Denoiser, sde: Sde, x: Tensor, cond: Cond, step: int, noise: Tensor, reduction: Reduction
        ) -> tuple[Tensor, Tensor]:
            moved = []
            for part in batches(len(x), self.rows):
                own = slice(part.start, part.stop)
                with self.weights.per_image(len(part)) as copies, torch.enable_grad():
                    x_next, logp = transition(model, sde, x[own], cond.select(own), step, noise[own], reduction)
                    weight = 1.0 if self.step_weights is None else self.step_weights[step].item()
                    gradients = gradients_of(weight * logp.sum(), copies)
                for name, gradient in gradients.items():
                    if name not in found:
                        found[name] = gradient.new_zeros(len(x), *gradient.shape[1:])
                    found[name][own] += gradient
                moved.append((x_next, logp.detach()))
            return torch.cat([x_next for x_next, _ in moved]), torch.cat([logp for _, logp in moved])

        rollout = self.local.sample_with(with_gradients, draw, cond, keep, on_step)
        if rollout.trajectory is None:
            return rollout
        return replace(rollout, trajectory=replace(rollout.trajectory, gradients=found))


def gradients_of(value: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of a scalar in each of the leaves by name; zeros where it does not depend on one."""
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def weighted_sum(gradients: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    """The sum over images of weights [B] times gradients [B,*shape], by name."""
    return {name: torch.tensordot(weights.to(values), values, dims=1) for name, values in gradients.items()}
