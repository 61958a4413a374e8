"""Samplers: images with the likelihood of every kept step that made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tastemaker.diffusion.losses import Reduction, gaussian_logp
from tastemaker.diffusion.model import Denoiser
from tastemaker.diffusion.sde import Sde, times
from tastemaker.types import Cond, Draw, Rollout, Trajectory

OnStep = Callable[[], None]
"""Called once for each sampler step."""


def do_nothing() -> None:
    """A callback for those who need none."""


class Sampler(Protocol):
    """Where images come from: the model in this process, or another engine."""

    def __call__(
        self, draw: Draw, cond: Cond, keep: Sequence[int] = (), on_step: Callable[[], None] = do_nothing
    ) -> Rollout:
        """The B images of a draw, conditioned on `cond` [B], with the transitions of the steps `keep`.

        Calls `on_step` as sampling goes on, once for each of the steps.
        """
        ...


@dataclass(frozen=True)
class LocalSampler:
    """The model in this process, step by step."""

    model: Denoiser
    sde: Sde
    reduction: Reduction = "mean"
    """Whether log-probabilities are means or sums over the elements of a latent."""
    noise_outside: bool = True
    """Whether steps that are not kept have noise too, where any are kept; MixGRPO's have none."""

    def __call__(
        self, draw: Draw, cond: Cond, keep: Sequence[int] = (), on_step: Callable[[], None] = do_nothing
    ) -> Rollout:
        return self.sample_with(transition, draw, cond, keep, on_step)

    def sample_with(
        self, kept_step: KeptStep, draw: Draw, cond: Cond, keep: Sequence[int], on_step: Callable[[], None]
    ) -> Rollout:
        """The images, with `kept_step` for the steps `keep`."""
        sde = self.sde if self.noise_outside or not keep else self.sde.noise_only_at(keep)
        return sample(self.model, cond, draw, sde, keep, on_step, self.reduction, kept_step)


KeptStep = Callable[[Denoiser, Sde, Tensor, Cond, int, Tensor, Reduction], tuple[Tensor, Tensor]]
"""As `transition`."""


def next_latent(model: Denoiser, sde: Sde, x: Tensor, cond: Cond, step: int) -> tuple[Tensor, Tensor]:
    """Mean [N,*D] and standard deviation [N,1,..] of the latents that follow x [N,*D] at a step."""
    x0 = model.denoise(x, times(sde, step, x), cond)
    return sde.step(x.to(x0.dtype), x0, step)


def transition(
    model: Denoiser, sde: Sde, x: Tensor, cond: Cond, step: int, noise: Tensor, reduction: Reduction
) -> tuple[Tensor, Tensor]:
    """The next latents [N,*D], which have no graph, and their log-probability [N], at a step with this noise [N,*D]."""
    return draw_transition(*next_latent(model, sde, x, cond, step), noise, x.dtype, reduction)


def draw_transition(
    mean: Tensor, std: Tensor, noise: Tensor, dtype: torch.dtype, reduction: Reduction
) -> tuple[Tensor, Tensor]:
    """As `transition`, from the mean [N,*D] and standard deviation [N,1,..] of the next latents in `dtype`."""
    x_next = (mean + std * noise).detach().to(dtype)
    return x_next, gaussian_logp(x_next, mean, std, reduction)


@torch.no_grad()
def sample(
    model: Denoiser,
    cond: Cond,
    draw: Draw,
    sde: Sde,
    keep: Sequence[int] = (),
    on_step: Callable[[], None] = do_nothing,
    reduction: Reduction = "mean",
    kept_step: KeptStep = transition,
) -> Rollout:
    """Samples B = len(draw) images' latents, and keeps the transitions of the contiguous steps `keep`.

    x_T is standard normal, as all diffusers' DDIM pipelines start. The noise comes from the draw's own counters.
    A kept step without noise (not in Sde.stochastic) has no likelihood: its log-probability is NaN. Latents are stored
    in float32 whatever the network runs in, and the log-probability is that of the latent as stored, so that the ratio
    right after sampling is 1. It is stored in float64: as a sum over 16384 elements it is so large that float32 would
    move the ratio by a thousandth. `kept_step` makes the kept steps.

    Images that share a root are one until the first kept step, where they branch: the network is asked once for each
    root before it (B2-DiffuRL §3.3). Without kept steps they never branch.
    """
    device = model.device
    roots, root = draw.roots()
    branches = bool(draw.root_index)
    now, now_cond = roots, cond.select(_first(root, device)) if branches else cond
    x = now.noise(0, model.latent_shape, device)
    latents: list[Tensor] = []
    logp: list[Tensor] = []
    noisy = set(sde.stochastic())
    for step in range(len(sde)):
        if branches and keep and step == keep[0]:
            x, now, now_cond = x[torch.tensor(root, device=device)], draw, cond
        if step in keep and step in noisy:
            noise = now.noise(step + 1, model.latent_shape, device)
            x_next, found = kept_step(model, sde, x, now_cond, step, noise, reduction)
            latents.append(x)
            logp.append(found)
        else:
            mean, std = next_latent(model, sde, x, now_cond, step)
            x_next = mean + std * now.noise(step + 1, model.latent_shape, device) if step in noisy else mean
            x_next = x_next.to(x.dtype)
            if step in keep:
                latents.append(x)
                logp.append(x.new_full((len(x),), torch.nan, dtype=torch.float64))
        if keep and step == keep[-1]:
            latents.append(x_next)
        x = x_next
        on_step()
    if branches and not keep:
        x = x[torch.tensor(root, device=device)]
    if not keep:
        return Rollout(cond, draw, x)
    steps = torch.tensor(list(keep), dtype=torch.int64, device=device)
    return Rollout(cond, draw, x, Trajectory(torch.stack(latents, dim=1), steps, torch.stack(logp, dim=1)))


def _first(root: Sequence[int], device: torch.device) -> Tensor:
    """[R] the first image of each root, given each image's root, which are numbered by first appearance."""
    return torch.tensor([root.index(number) for number in range(max(root) + 1)], device=device)


def batches(count: int, size: int) -> list[range]:
    """range(count) in pieces of at most `size`."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
