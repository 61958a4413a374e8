"""The one sampler: pictures with the likelihood of every step that made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tastemaker.losses import gaussian_logp
from tastemaker.process import Grid, transition
from tastemaker.types import Cond, Draw, Model, Rollout


@torch.no_grad()
def sample(
    model: Model,
    cond: Cond,
    draw: Draw,
    grid: Grid,
    eta: float,
    keep: Sequence[int] = (),
    on_step: Callable[[], None] = lambda: None,
) -> Rollout:
    """Samples B = len(draw) pictures' latents, and keeps the transitions of the contiguous steps `keep`.

    x_T is standard normal, as all diffusers' DDIM pipelines start. The noise comes from the draw's own counters.
    A kept step must have noise (Grid.stochastic), since a deterministic one has no likelihood. Latents are stored
    in float32 whatever the network runs in, and the log-probability is that of the latent as stored, so that the
    ratio right after sampling is 1.
    """
    device = model.device
    x = draw.noise(0, model.latent_shape, device)
    latents, logp = [], []
    noisy = set(grid.stochastic(eta))
    for step in range(len(grid)):
        time = grid.times[step].to(device).expand(len(draw))
        x0 = model.denoise(x, time, cond)
        mean, std = transition(x.to(x0.dtype), x0, grid, step, eta)
        x_next = mean + std * draw.noise(step + 1, model.latent_shape, device) if step in noisy else mean
        x_next = x_next.to(x.dtype)
        if step in keep:
            latents.append(x)
            logp.append(gaussian_logp(x_next, mean, std).to(x.dtype))
        if keep and step == keep[-1]:
            latents.append(x_next)
        x = x_next
        on_step()
    empty = x.new_empty(len(draw), 0)
    return Rollout(
        latents=torch.stack(latents, dim=1) if latents else empty,
        steps=torch.tensor(list(keep), dtype=torch.int64, device=device),
        logp=torch.stack(logp, dim=1) if logp else empty,
        x0=x,
        text=cond.text,
    )


def batches(count: int, size: int) -> list[range]:
    """range(count) in pieces of at most `size`."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
