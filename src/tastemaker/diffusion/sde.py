"""The stochastic step of the sampler: from a latent and the estimate of x_0 to the Gaussian of the next latent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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

    @property
    def sde_type(self) -> str:
        """The name of its noise schedule, as in `sampling.sde_type`; never `auto`."""
        ...

    @property
    def eta(self) -> float:
        """The weight of its noise, in the schedule's own measure."""
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


@dataclass(frozen=True, eq=False)
class KeptCoefficients:
    """Steps with mean alpha_s x_0 + sqrt(sigma_s^2 - std^2) eps, from t to s, with eps the noise that x and the
    estimate x_0 imply: x_0 and the noise keep the coefficients of the process whatever std is. Made by `ddim` and
    `cps`.
    """

    grid: Grid
    sde_type: str
    eta: float
    std: Tensor
    """[T] float64 standard deviations of the steps' noise; 0 where a step is deterministic."""

    def __len__(self) -> int:
        return len(self.grid)

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
        return _above_zero(self.std)

    def noise_only_at(self, steps: Sequence[int]) -> KeptCoefficients:
        return replace(self, std=_only_at(steps, self.std))


def ddim(grid: Grid, eta: float) -> KeptCoefficients:
    """DDIM with noise (Song et al. 2020, Eq. 12 and 16).

    std = eta sigma_s sqrt(1 - (alpha_t sigma_s / alpha_s sigma_t)^2), which for variance-preserving processes is
    DDIM's sigma: eta = 0 is deterministic DDIM, 1 the ancestral sampler.
    """
    ratio = (grid.alpha * grid.sigma_next) / (grid.alpha_next * grid.sigma)
    return KeptCoefficients(grid, "ddim", eta, eta * grid.sigma_next * (1 - ratio**2).clamp(min=0).sqrt())


def cps(grid: Grid, eta: float) -> KeptCoefficients:
    """Coefficients-preserving sampling (Wang and Yu 2025, arXiv 2509.05952): std = sigma_s sin(eta pi / 2).

    `eta`, 0 to 1, is the share of the noise that is drawn anew. 1 draws all of it anew, as diffusers'
    FlowMatchEulerDiscreteScheduler does with `stochastic_sampling`; 0 is its Euler step.
    """
    return KeptCoefficients(grid, "cps", eta, grid.sigma_next * math.sin(eta * math.pi / 2))


@dataclass(frozen=True, eq=False)
class EulerMaruyama:
    """Euler-Maruyama steps of an SDE with the flow's marginals (Liu et al. 2025, arXiv 2505.05470). Made by `flow_sde`
    and `dance_sde`.

    std = g sqrt(-ds) and mean = x + (v + g^2 / (2 sigma) eps) ds with ds = sigma_s - sigma_t and v = eps - x_0. As in
    the public codes, the last step has noise, which stays in the image.
    """

    grid: Grid
    sde_type: str
    eta: float
    diffusion: Tensor
    """[T] float64 g of the steps; 0 where a step is deterministic."""

    def __len__(self) -> int:
        return len(self.grid)

    @property
    def std(self) -> Tensor:
        """[T] float64 standard deviations of the steps' noise; 0 where a step is deterministic."""
        return self.diffusion * (self.grid.sigma - self.grid.sigma_next).sqrt()

    def step(self, x: Tensor, x0: Tensor, index: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean [N,*D] and standard deviation [N,1,..] of the next latent; see `Sde`."""
        g = self.grid
        sigma = rows(g.sigma, index, x)
        eps = (x - rows(g.alpha, index, x) * x0) / sigma
        # The score of x is -eps / sigma, and the drift v - g^2 / 2 times the score.
        drift = eps - x0 + rows(self.diffusion, index, x) ** 2 / (2 * sigma) * eps
        return x + drift * (rows(g.sigma_next, index, x) - sigma), rows(self.std, index, x)

    def stochastic(self) -> list[int]:
        return _above_zero(self.std)

    def noise_only_at(self, steps: Sequence[int]) -> EulerMaruyama:
        return replace(self, diffusion=_only_at(steps, self.diffusion))


def flow_sde(grid: Grid, eta: float) -> EulerMaruyama:
    """Flow-GRPO's g = eta sqrt(sigma / (1 - sigma)) (Liu et al. 2025, arXiv 2505.05470).

    At sigma = 1, where g has no bound, 1 - sigma of the next step is taken, as in the public code. eta = 0 is the ODE's
    Euler step, 0.7 the public code's.
    """
    left = torch.where(grid.sigma == 1, 1 - grid.sigma_next, 1 - grid.sigma)
    return EulerMaruyama(grid, "flow-sde", eta, eta * (grid.sigma / left).sqrt())


def dance_sde(grid: Grid, eta: float) -> EulerMaruyama:
    """DanceGRPO's g = eta, the same at all steps (Xue et al. 2025, arXiv 2505.07818).

    eta = 0 is the ODE's Euler step, 0.3 the public code's for FLUX.
    """
    return EulerMaruyama(grid, "dance-sde", eta, torch.full_like(grid.sigma, eta))


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


_TYPES: dict[str, Callable[[Grid, float], Sde]] = {
    "ddim": ddim, "cps": cps, "flow-sde": flow_sde, "dance-sde": dance_sde,
}  # fmt: skip


def is_flow(grid: Grid) -> bool:
    """Whether a grid is of a rectified flow, alpha = 1 - sigma at all steps."""
    return bool(((grid.alpha + grid.sigma - 1).abs() < 1e-6).all())


def _only_at(steps: Sequence[int], values: Tensor) -> Tensor:
    """values [T] with 0 at all other steps."""
    return torch.zeros_like(values).index_copy(0, torch.tensor(steps, dtype=torch.long), values[list(steps)])


def _above_zero(values: Tensor) -> list[int]:
    return [index for index, value in enumerate(values.tolist()) if value > 0]


def times(sde: Sde, step: int, x: Tensor) -> Tensor:
    """[N] the training time at which a sampler step asks the network about x [N,*D]."""
    return sde.grid.times[step].to(x.device).expand(len(x))
