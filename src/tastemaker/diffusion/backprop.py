"""The sampling chain with its graph: images through which a reward's gradient flows back into the network.

The steps before the first one with a gradient are ordinary sampling, without a graph. Each trained step
is recomputed in the backward pass, so that between the two passes only its latents are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tastemaker.diffusion.losses import mean_square
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sde import Sde, times
from tastemaker.types import Cond, Draw


@dataclass(frozen=True)
class Chain:
    """N finished latents that hang on the network's weights."""

    x0: Tensor
    """[N,*D]"""
    divergence: Tensor | None
    """[N] mean over the trained steps of the mean square difference to the reference, in units of the network's
    output (of its noise, where it predicts that); None where it was not asked for."""


def chain(
    model: Model,
    cond: Cond,
    draw: Draw,
    sde: Sde,
    grad_steps: Sequence[int],
    *,
    until: int | None = None,
    recompute: bool = True,
    compare: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Chain:
    """Samples N = len(draw) latents as `sample` does, with a graph through the predictions of the steps `grad_steps`.

    The network's outputs at all other steps are detached. So the gradient flows through the network at the trained
    steps, and through their latents (AlignProp §4.1); where a later step is not trained, through its latent alone, as
    in diffusers' DDIMScheduler.step with `model_output` detached, whatever the network predicts. With `until`,
    sampling ends at that step's estimate of x_0 (ReFL). `recompute` makes the trained steps again in the backward
    pass; values and gradients are the same without. `compare` measures the distance from the reference. Noise is
    `sample`'s own, in float32; `dtype` is that of the latents.
    """
    steps, noisy = set(grad_steps), set(sde.stochastic())
    last = len(sde) - 1 if until is None else until
    x = draw.noise(0, model.latent_shape, model.device).to(dtype)
    gaps: list[Tensor] = []
    for step in range(last + 1):
        noise = draw.noise(step + 1, model.latent_shape, model.device).to(dtype) if step in noisy else None
        after = _estimate if step == until else partial(_after, sde, step, noise)
        move = _moving(model, cond, sde, step, after)
        if step in steps:
            before = x
            x, x0 = _recomputed(move, x) if recompute else move(x)
            if compare:
                gaps.append(_distance(model, cond, sde, step, before, x0))
            continue
        with torch.no_grad():
            x0 = model.denoise(x.detach(), times(sde, step, x), cond)
        # Where no step has learned yet x has no graph, and so nothing behind it has one.
        x = after(x, _held(model, sde, step, x, x0))
    return Chain(x, torch.stack(gaps).mean(dim=0) if gaps else None)


def _distance(model: Model, cond: Cond, sde: Sde, step: int, x: Tensor, x0: Tensor) -> Tensor:
    """[N] mean square difference of the network's output at x [N,*D] to the reference's, which is a constant.

    The part that x itself has in both estimates of x_0 is taken away first, since no gradient may flow through it.
    """
    t, own = times(sde, step, x), without_output(model, sde, step, x)
    with torch.no_grad(), model.weights.reference():
        reference = model.denoise(x.detach(), t, cond) - own
    return mean_square(x0 - own - reference) * model.process.output_scale(t).square()


def without_output(model: Model, sde: Sde, step: int, x: Tensor) -> Tensor:
    """The part that x [N,*D] itself has in the estimate of x_0, which is linear in x and in the network's output."""
    return model.process.x0(torch.zeros_like(x), x, times(sde, step, x))


def _recomputed(move: Move, x: Tensor) -> tuple[Tensor, Tensor]:
    """`move(x)`, of which nothing but x is kept.

    The re-entrant kind of checkpoint, because the other kind keeps the nodes of a graph without its tensors, 5 MB a
    step on the bundled model. It wants an input with a gradient, and `backward` without `inputs`.
    """
    found = checkpoint(
        move, x if x.requires_grad else x.detach().requires_grad_(), use_reentrant=True, preserve_rng_state=False
    )
    assert isinstance(found, tuple)
    return found


Move = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From a latent to the next one and the estimate of x_0 behind it, both [N,*D]."""


def _moving(model: Model, cond: Cond, sde: Sde, step: int, after: Callable[[Tensor, Tensor], Tensor]) -> Move:
    def move(x: Tensor) -> tuple[Tensor, Tensor]:
        x0 = model.denoise(x, times(sde, step, x), cond)
        return after(x, x0), x0

    return move


def _after(sde: Sde, step: int, noise: Tensor | None, x: Tensor, x0: Tensor) -> Tensor:
    """The next latent."""
    mean, std = sde.step(x.to(x0.dtype), x0, step)
    return (mean if noise is None else mean + std * noise).to(x.dtype)


def _estimate(x: Tensor, x0: Tensor) -> Tensor:
    """The estimate of x_0 in place of the next latent."""
    return x0.to(x.dtype)


def _held(model: Model, sde: Sde, step: int, x: Tensor, x0: Tensor) -> Tensor:
    """x0 [N,*D], an estimate without a graph, with its derivative by x [N,*D] for a constant output of the network.

    An estimate of x_0 is linear in the output and in x, so that an output of 0 leaves the part that x has in it:
    1 / alpha of x for a network that predicts the noise, alpha for v, 1 for a flow, 0 for x_0 itself.
    """
    if not x.requires_grad:
        return x0
    change = (x - x.detach()).to(x0.dtype)
    return x0 + model.process.x0(torch.zeros_like(change), change, times(sde, step, x))


def renoised(
    model: Model, cond: Cond, x0: Tensor, noise: Tensor, sde: Sde, step: int, then: int, *, recompute: bool = True
) -> Tensor:
    """Finished latents [N,*D] seen again through the network: noised to `step`, denoised to step `then`, and back.

    From step `then` the known noise is taken away again, not the network's, so that what hangs on the network is
    w x_0_theta + (1 - w) x_0 with w = 1 - (alpha_t sigma_s) / (alpha_s sigma_t) for a move from t to s. A short move
    leaves most of an image as it is, so that even early times give images that a reward can read (SRPO's Direct-Align,
    arXiv 2509.06942 §3.1). From then = len(sde) on, s is the finished latent, which is noised here as an x_0 and so
    has alpha_s = 1 and sigma_s = 0 also where the schedule leaves a little noise in it (`set_alpha_to_one` = false,
    as Stable Diffusion has): w = 1, and what is returned is the network's own estimate x_0_theta (DRaFT-LV). x0 and
    noise are constants.
    """
    grid = sde.grid
    alpha, sigma = grid.alpha[step].item(), grid.sigma[step].item()
    kept = (grid.sigma[then] / grid.alpha[then]).item() if then < len(grid) else 0.0
    weight = 1 - kept * alpha / sigma
    x = alpha * x0.detach() + sigma * noise
    move = lambda x: model.denoise(x, times(sde, step, x), cond)  # noqa: E731
    seen = checkpoint(move, x, use_reentrant=False, preserve_rng_state=False) if recompute else move(x)
    assert isinstance(seen, Tensor)
    return (weight * seen + (1 - weight) * x0.detach()).to(x0.dtype)


def shown(model: Model, x0: Tensor, *, recompute: bool = True) -> Tensor:
    """Images [N,3,H,W] of latents, recomputed in the backward pass one after the other: as little memory as one."""
    if not recompute:
        return model.decode(x0)
    made = [
        checkpoint(model.decode, part, use_reentrant=x0.requires_grad, preserve_rng_state=False) for part in x0.split(1)
    ]
    return torch.cat([part for part in made if isinstance(part, Tensor)])
