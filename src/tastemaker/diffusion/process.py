"""Diffusion processes: x_t = alpha_t x_0 + sigma_t eps, and the times at which a sampler visits them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]


@dataclass(frozen=True)
class Grid:
    """The T steps of a sampling run, from noise (index 0) to image (index T-1). Tensors [T]."""

    times: Tensor
    """Training times at which the network is asked: int64, or float64 of processes in continuous time."""
    alpha: Tensor
    """Scale of x_0 at `times`, float64."""
    sigma: Tensor
    """Scale of the noise at `times`, float64."""
    alpha_next: Tensor
    """Scale of x_0 where each step leads."""
    sigma_next: Tensor
    """Scale of the noise where each step leads."""
    clip: float | None = None
    """Range to which the x_0 estimate is clipped, for models whose scheduler asks for it."""

    def __len__(self) -> int:
        return len(self.times)


class Process(Protocol):
    """A noising process x_t = alpha_t x_0 + sigma_t eps, and how the network's output reads in it."""

    def grid(self, steps: int, latent_shape: Sequence[int] = ()) -> Grid:
        """The times at which `steps` sampler steps ask the network about latents of this shape.

        Some flow models shift their times by the resolution; others do not look at the shape.
        """
        ...

    def x0(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The network's output at times t as an estimate of x_0."""
        ...

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t [N] at training times t [N]."""
        ...

    def output_scale(self, t: Tensor) -> Tensor:
        """[N] by how much the network's output moves for a move of 1 in the estimate of x_0, in size."""
        ...

    @property
    def times(self) -> range:
        """The training times from image to noise; of a process in continuous time, the whole numbers among them.

        Of these the denoising losses draw theirs; a sampler may visit times between.
        """
        ...


def rows(values: Tensor, step: Tensor | int, like: Tensor) -> Tensor:
    """values[step] with the device and number of dimensions of `like` [N,*D]: [N,1,..] or [1,1,..]."""
    chosen = values.to(like.device, like.dtype)[step]
    return chosen.reshape(-1, *[1] * (like.ndim - 1))


def x0_from(prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, kind: Prediction) -> Tensor:
    """A network's output as an estimate of x_0. Shapes [N,*D]; alpha and sigma broadcast.

    `v_prediction` is v = alpha eps - sigma x_0 (Salimans and Ho 2022, App. D); `flow` is v = eps - x_0 with
    alpha = 1 - sigma.
    """
    if kind == "epsilon":
        return (x - sigma * prediction) / alpha
    if kind == "v_prediction":
        return alpha * x - sigma * prediction
    if kind == "flow":
        return x - sigma * prediction
    return prediction


def output_scale(alpha: Tensor, sigma: Tensor, kind: Prediction) -> Tensor:
    """|d output / d x_0| [N] at fixed x, the inverse of what `x0_from` does to the network's output."""
    if kind == "epsilon":
        return alpha / sigma
    return torch.ones_like(sigma) if kind == "sample" else 1 / sigma


def variance_preserving(times: Tensor, cumulative: Tensor, cumulative_next: Tensor, clip: float | None = None) -> Grid:
    """The grid of a process with alpha^2 + sigma^2 = 1, from the cumulative products of its alphas [T]."""
    now, then = cumulative.double(), cumulative_next.double()
    return Grid(times.to(torch.int64), now.sqrt(), (1 - now).sqrt(), then.sqrt(), (1 - then).sqrt(), clip)
