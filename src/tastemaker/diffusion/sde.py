"""The stochastic step of the sampler: from a latent and the estimate of x_0 to the Gaussian of the next latent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from tastemaker.diffusion.process import Grid, rows
from tastemaker.errors import ConfigError

if TYPE_CHECKING:
    from tastemaker.diffusion.model import Model
    from tastemaker.diffusion.sde_types import SdeType


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
        return _at(self.noisy, self.eta * g.sigma_next * (1 - ratio**2).clamp(min=0).sqrt())

    def step(self, x: Tensor, x0: Tensor, index: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean [N,*D] and standard deviation [N,1,..] of the next latent; see `Sde`."""
        return _kept_coefficients(self.grid, self.std, x, x0, index)

    def stochastic(self) -> list[int]:
        return _above_zero(self.std)

    def noise_only_at(self, steps: Sequence[int]) -> DDIM:
        return replace(self, noisy=frozenset(steps))


@dataclass(frozen=True)
class CPS:
    """Coefficients-preserving sampling (Wang and Yu 2025, arXiv 2509.05952): DDIM's mean with
    std = sigma_s sin(eta pi / 2).

    x_0 and the noise in the next latent have the coefficients alpha_s and sigma_s of the process whatever eta is, so
    that no noise is left in an image. eta = 1 draws all of the noise anew, as diffusers'
    FlowMatchEulerDiscreteScheduler does with `stochastic_sampling`; eta = 0 is its Euler step.
    """

    grid: Grid
    eta: float
    """Share of the noise that is drawn anew, 0 to 1."""
    noisy: frozenset[int] | None = None
    """The steps that may have noise; all of them where it is None."""

    def __len__(self) -> int:
        return len(self.grid)

    @cached_property
    def std(self) -> Tensor:
        """[T] float64 standard deviations of the steps' noise; 0 where a step is deterministic."""
        return _at(self.noisy, self.grid.sigma_next * math.sin(self.eta * math.pi / 2))

    def step(self, x: Tensor, x0: Tensor, index: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean [N,*D] and standard deviation [N,1,..] of the next latent; see `Sde`."""
        return _kept_coefficients(self.grid, self.std, x, x0, index)

    def stochastic(self) -> list[int]:
        return _above_zero(self.std)

    def noise_only_at(self, steps: Sequence[int]) -> CPS:
        return replace(self, noisy=frozenset(steps))


@dataclass(frozen=True)
class FlowSDE:
    """Flow-GRPO's step (Liu et al. 2025, arXiv 2505.05470): Euler-Maruyama of an SDE with the flow's marginals.

    std = g sqrt(-ds) and mean = x + (v + g^2 / (2 sigma) eps) ds with ds = sigma_s - sigma_t, v = eps - x_0 and
    g = eta sqrt(sigma / (1 - sigma)). At sigma = 1, where g has no bound, 1 - sigma of the next step is taken, as in
    the public code. Also as there, the last step has noise, which stays in the image.
    """

    grid: Grid
    eta: float
    """Weight of the noise: 0 is the ODE's Euler step, 0.7 the public code's."""
    noisy: frozenset[int] | None = None
    """The steps that may have noise; all of them where it is None."""

    def __len__(self) -> int:
        return len(self.grid)

    @cached_property
    def diffusion(self) -> Tensor:
        """[T] float64 g of the steps; 0 where a step is deterministic."""
        g = self.grid
        left = torch.where(g.sigma == 1, 1 - g.sigma_next, 1 - g.sigma)
        return _at(self.noisy, self.eta * (g.sigma / left).sqrt())

    @cached_property
    def std(self) -> Tensor:
        """[T] float64 standard deviations of the steps' noise; 0 where a step is deterministic."""
        return self.diffusion * (self.grid.sigma - self.grid.sigma_next).sqrt()

    def step(self, x: Tensor, x0: Tensor, index: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean [N,*D] and standard deviation [N,1,..] of the next latent; see `Sde`."""
        return _drift_corrected(self.grid, self.diffusion, x, x0, index), rows(self.std, index, x)

    def stochastic(self) -> list[int]:
        return _above_zero(self.std)

    def noise_only_at(self, steps: Sequence[int]) -> FlowSDE:
        return replace(self, noisy=frozenset(steps))


@dataclass(frozen=True)
class DanceSDE:
    """DanceGRPO's step (Xue et al. 2025, arXiv 2505.07818): `FlowSDE` with the same g = eta at all steps.

    The last step has noise, which stays in the image, as in the public code.
    """

    grid: Grid
    eta: float
    """Weight of the noise: 0 is the ODE's Euler step, 0.3 the public code's for FLUX."""
    noisy: frozenset[int] | None = None
    """The steps that may have noise; all of them where it is None."""

    def __len__(self) -> int:
        return len(self.grid)

    @cached_property
    def diffusion(self) -> Tensor:
        """[T] float64 g of the steps; 0 where a step is deterministic."""
        return _at(self.noisy, torch.full_like(self.grid.sigma, self.eta))

    @cached_property
    def std(self) -> Tensor:
        """[T] float64 standard deviations of the steps' noise; 0 where a step is deterministic."""
        return self.diffusion * (self.grid.sigma - self.grid.sigma_next).sqrt()

    def step(self, x: Tensor, x0: Tensor, index: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean [N,*D] and standard deviation [N,1,..] of the next latent; see `Sde`."""
        return _drift_corrected(self.grid, self.diffusion, x, x0, index), rows(self.std, index, x)

    def stochastic(self) -> list[int]:
        return _above_zero(self.std)

    def noise_only_at(self, steps: Sequence[int]) -> DanceSDE:
        return replace(self, noisy=frozenset(steps))


def make_sde(model: Model, steps: int, eta: float, sde_type: SdeType = "auto") -> Sde:
    """The noise schedule `sde_type` on the model's own grid of `steps` steps, for latents of its shape.

    Raises ConfigError where the schedule does not suit the model, or eta the schedule.
    """
    grid = model.process.grid(steps, model.latent_shape)
    flow = is_flow(grid)
    kind = ("cps" if flow else "ddim") if sde_type == "auto" else sde_type
    if kind in ("flow-sde", "dance-sde") and not flow:
        raise ConfigError(
            f"sampling.sde_type is {kind}, which is defined for flow-matching models, but this model's process is "
            "none: take auto, ddim or cps"
        )
    if kind == "cps" and not 0 <= eta <= 1:
        chosen = "cps" if sde_type == "cps" else "auto, which is cps for this model"
        raise ConfigError(
            f"sampling.eta is {eta}, but must be 0 to 1 where sampling.sde_type is {chosen}: it is the share of the "
            "noise that is drawn anew"
        )
    return _TYPES[kind](grid, eta)


_TYPES: dict[str, Callable[[Grid, float], Sde]] = {"ddim": DDIM, "cps": CPS, "flow-sde": FlowSDE, "dance-sde": DanceSDE}


def is_flow(grid: Grid) -> bool:
    """Whether a grid is of a rectified flow, alpha = 1 - sigma at all steps."""
    return bool(((grid.alpha + grid.sigma - 1).abs() < 1e-6).all())


def _kept_coefficients(g: Grid, stds: Tensor, x: Tensor, x0: Tensor, index: Tensor | int) -> tuple[Tensor, Tensor]:
    """Mean alpha_s x_0 + sqrt(sigma_s^2 - std^2) eps and std, with the process' own scales in the next latent."""
    alpha, sigma = rows(g.alpha, index, x), rows(g.sigma, index, x)
    alpha_next, sigma_next = rows(g.alpha_next, index, x), rows(g.sigma_next, index, x)
    std = rows(stds, index, x)
    eps = (x - alpha * x0) / sigma
    if g.clip is not None:
        x0 = x0.clamp(-g.clip, g.clip)
    mean = alpha_next * x0 + (sigma_next**2 - std**2).clamp(min=0).sqrt() * eps
    return mean, std


def _drift_corrected(g: Grid, diffusion: Tensor, x: Tensor, x0: Tensor, index: Tensor | int) -> Tensor:
    """Mean x + (v + g^2 / (2 sigma) eps) ds: the score of x is -eps / sigma, and the drift v - g^2 / 2 score."""
    sigma = rows(g.sigma, index, x)
    eps = (x - rows(g.alpha, index, x) * x0) / sigma
    drift = eps - x0 + rows(diffusion, index, x) ** 2 / (2 * sigma) * eps
    return x + drift * (rows(g.sigma_next, index, x) - sigma)


def _at(noisy: frozenset[int] | None, values: Tensor) -> Tensor:
    """values [T] with 0 at the steps that may have no noise."""
    if noisy is None:
        return values
    return torch.stack([value if i in noisy else torch.zeros_like(value) for i, value in enumerate(values)])


def _above_zero(values: Tensor) -> list[int]:
    return [index for index, value in enumerate(values.tolist()) if value > 0]


def times(sde: Sde, step: int, x: Tensor) -> Tensor:
    """[N] the training time at which a sampler step asks the network about x [N,*D]."""
    return sde.grid.times[step].to(x.device).expand(len(x))
