"""The stochastic step of the sampler: from a latent and the estimate of x_0 to the Gaussian of the next latent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from tastemaker.diffusion.process import Grid, rows


class Sde(Protocol):
    """A time grid with a noise level at each of its T steps."""

    @property
    def grid(self) -> Grid:
        """The times and scales of the T steps."""
        ...

    def __len__(self) -> int:
        """T"""
        ...

    def step(self, x: Tensor, x0: Tensor, index: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean [N,*D] and standard deviation [N,1,..] of p(x_next | x), given the network's estimate of x_0 [N,*D].

        `index` is one sampler step for all rows, or [N] of them.
        """
        ...

    def stochastic(self) -> list[int]:
        """The steps that have noise, and so a likelihood."""
        ...

    def noise_only_at(self, steps: Sequence[int]) -> Sde:
        """The same without noise at all other steps (MixGRPO)."""
        ...


@dataclass(frozen=True)
class DDIM:
    """DDIM with noise (Song et al. 2020, Eq. 12 and 16).

    mean = alpha_s x_0 + sqrt(sigma_s^2 - std^2) eps for a step from t to s, with eps the noise that x and the estimate
    x_0 imply, and std = eta sigma_s sqrt(1 - (alpha_t sigma_s / alpha_s sigma_t)^2), which for variance-preserving
    processes is DDIM's sigma.
    """

    grid: Grid
    eta: float
    """Weight of the noise: 0 is deterministic DDIM, 1 the ancestral sampler."""
    noisy: frozenset[int] | None = None
    """The steps that may have noise; all of them where it is None."""

    def __len__(self) -> int:
        return len(self.grid)

    @cached_property
    def std(self) -> Tensor:
        """[T] float64 standard deviations of the steps' noise; 0 where a step is deterministic."""
        g = self.grid
        ratio = (g.alpha * g.sigma_next) / (g.alpha_next * g.sigma)
        std = self.eta * g.sigma_next * (1 - ratio**2).clamp(min=0).sqrt()
        if self.noisy is None:
            return std
        return torch.stack([value if i in self.noisy else torch.zeros_like(value) for i, value in enumerate(std)])

    def step(self, x: Tensor, x0: Tensor, index: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean [N,*D] and standard deviation [N,1,..] of the next latent; see `Sde`."""
        g = self.grid
        alpha, sigma = rows(g.alpha, index, x), rows(g.sigma, index, x)
        alpha_next, sigma_next = rows(g.alpha_next, index, x), rows(g.sigma_next, index, x)
        std = rows(self.std, index, x)
        eps = (x - alpha * x0) / sigma
        if g.clip is not None:
            x0 = x0.clamp(-g.clip, g.clip)
        mean = alpha_next * x0 + (sigma_next**2 - std**2).clamp(min=0).sqrt() * eps
        return mean, std

    def stochastic(self) -> list[int]:
        return [index for index, std in enumerate(self.std.tolist()) if std > 0]

    def noise_only_at(self, steps: Sequence[int]) -> DDIM:
        return replace(self, noisy=frozenset(steps))


def times(sde: Sde, step: int, x: Tensor) -> Tensor:
    """[N] the training time at which a sampler step asks the network about x [N,*D]."""
    return sde.grid.times[step].to(x.device).expand(len(x))
