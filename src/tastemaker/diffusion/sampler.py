"""The one sampler: images with the likelihood of every step that made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tastemaker.diffusion.losses import Reduction, gaussian_logp
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.process import Grid, transition
from tastemaker.types import Cond, Draw, Rollout


@torch.no_grad()
def sample(
    model: Model,
    cond: Cond,
    draw: Draw,
    grid: Grid,
    eta: float,
    keep: Sequence[int] = (),
    on_step: Callable[[], None] = lambda: None,
    reduction: Reduction = "mean",
    quiet_outside: bool = False,
) -> Rollout:
    """Samples B = len(draw) images' latents, and keeps the transitions of the contiguous steps `keep`.

    x_T is standard normal, as all diffusers' DDIM pipelines start. The noise comes from the draw's own counters.
    A kept step must have noise (Grid.stochastic), since a deterministic one has no likelihood; with
    `quiet_outside` no other step has noise (MixGRPO). Latents are stored in float32 whatever the network runs in, and
    the log-probability is that of the latent as stored, so that the ratio right after sampling is 1. It is stored in
    float64: as a sum over 16384 elements it is so large that float32 would move the ratio by a thousandth.

    Images that share a root are one until the first kept step, where they branch: the network is asked once for each
    root before it (B2-DiffuRL §3.3). Without kept steps they never branch.
    """
    device = model.device
    roots, root = draw.roots()
    branches = bool(draw.root_index)
    whole, now, told = draw, roots, cond.select(_first(root, device)) if branches else cond
    x = now.noise(0, model.latent_shape, device)
    latents, logp = [], []
    noisy = set(grid.stochastic(eta))
    for step in range(len(grid)):
        if branches and keep and step == keep[0]:
            x, now, told = x[torch.tensor(root, device=device)], whole, cond
        x0 = model.denoise(x, times(grid, step, x), told)
        quiet = quiet_outside and step not in keep
        mean, std = transition(x.to(x0.dtype), x0, grid, step, 0.0 if quiet else eta)
        random = step in noisy and not quiet
        x_next = mean + std * now.noise(step + 1, model.latent_shape, device) if random else mean
        x_next = x_next.to(x.dtype)
        if step in keep:
            latents.append(x)
            logp.append(gaussian_logp(x_next, mean, std, reduction))
        if keep and step == keep[-1]:
            latents.append(x_next)
        x = x_next
        on_step()
    if branches and not keep:
        x = x[torch.tensor(root, device=device)]
    empty = x.new_empty(len(draw), 0)
    return Rollout(
        latents=torch.stack(latents, dim=1) if latents else empty,
        steps=torch.tensor(list(keep), dtype=torch.int64, device=device),
        logp=torch.stack(logp, dim=1) if logp else empty,
        x0=x,
        text=cond.text,
    )


def times(grid: Grid, step: int, x: Tensor) -> Tensor:
    """[N] the training time at which a sampler step asks the network about x [N,*D]."""
    return grid.times[step].to(x.device).expand(len(x))


def _first(root: Sequence[int], device: torch.device) -> Tensor:
    """[R] the first image of each root, given each image's root, which are numbered by first appearance."""
    return torch.tensor([root.index(number) for number in range(max(root) + 1)], device=device)


def batches(count: int, size: int) -> list[range]:
    """range(count) in pieces of at most `size`."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
