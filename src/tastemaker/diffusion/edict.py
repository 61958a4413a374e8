"""EDICT's coupled chain: sampling whose states the backward pass finds again by inversion, and so need not be kept.

Wallace, Gokul and Naik 2023, "EDICT: Exact Diffusion Inversion via Coupled Transformations" (arXiv 2211.12446). Two
latents x and y start from the same noise. A step moves x by the network's output at y, then y by the output at the new
x, and mixes the two. Each of these is affine in what it changes, so that it can be undone exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tastemaker.diffusion.backprop import Chain, without_output
from tastemaker.diffusion.losses import mean_square
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sde import Sde, times
from tastemaker.errors import ConfigError, DivergedError
from tastemaker.types import Cond, Draw

AMPLIFICATION = 1e8
"""The largest factor by which inversion may enlarge rounding errors: those of float64 stay below 1e-7."""
TOLERANCE = 1e-3
"""The largest error of an inverted state, in units of the latents' root mean square."""

Pair = tuple[Tensor, Tensor]
"""x and y, or the gradients with respect to them, each [N,*D]."""
Shift = Callable[[Tensor], Tensor]
"""What a half-step adds to one latent, [N,*D], as a function of the other."""


def mixed(x: Tensor, y: Tensor, p: float) -> Pair:
    """The mixing layer: p x + (1 - p) y in place of x, then p y + (1 - p) x of that x in place of y."""
    x = p * x + (1 - p) * y
    return x, p * y + (1 - p) * x


def unmixed(x: Tensor, y: Tensor, p: float) -> Pair:
    """The inverse of `mixed`."""
    y = (y - (1 - p) * x) / p
    return (x - (1 - p) * y) / p, y


def mixed_gradients(x: Tensor, y: Tensor, p: float) -> Pair:
    """Gradients with respect to what `mixed` was given, from those with respect to what it returned."""
    x = x + (1 - p) * y
    return p * x, p * y + (1 - p) * x


def coupled_step(x: Tensor, y: Tensor, slope: float, shift: Shift, p: float, y_first: bool) -> Pair:
    """One step: x becomes slope x + shift(y), y becomes slope y + shift(x), and they are mixed (Eq. 14).

    With `y_first` y is moved before x, as the public code does in every other step.
    """
    first, second = (y, x) if y_first else (x, y)
    first = slope * first + shift(second)
    second = slope * second + shift(first)
    return mixed(*((second, first) if y_first else (first, second)), p)


def inverse_step(x: Tensor, y: Tensor, slope: float, shift: Shift, p: float, y_first: bool) -> Pair:
    """The inverse of `coupled_step` (Eq. 15), which calls `shift` at the same two latents in reverse order."""
    x, y = unmixed(x, y, p)
    first, second = (y, x) if y_first else (x, y)
    second = (second - shift(first)) / slope
    first = (first - shift(second)) / slope
    return (second, first) if y_first else (first, second)


def slopes(model: Model, sde: Sde) -> list[float]:
    """For each of the T steps the factor that the next latent has of the latent, the network's output being constant.

    alpha_s / alpha_t where the network predicts the noise, as in the paper, and 1 for a flow's Euler step.
    """
    one = torch.ones(1, *[1] * len(model.latent_shape), dtype=torch.float64)
    return [sde.step(one, without_output(model, sde, step, one), step)[0].item() for step in range(len(sde))]


def invertible_slopes(model: Model, sde: Sde, mixing: float) -> list[float]:
    """`slopes`, for a chain that can be inverted. Raises ConfigError where this one cannot be."""
    if sde.stochastic():
        raise ConfigError(
            "algorithm.checkpointing is edict, which inverts the sampler's steps, but these have noise: set "
            "sampling.eta to 0, or take checkpointing = step"
        )
    if sde.grid.clip is not None:
        raise ConfigError(
            "algorithm.checkpointing is edict, which inverts the sampler's steps, but the model's scheduler clips its "
            "estimates (clip_sample): take checkpointing = step, or set clip_sample to false in the scheduler's config"
        )
    found = slopes(model, sde)
    if not all(0 < slope < float("inf") for slope in found):
        raise ConfigError(
            "algorithm.checkpointing is edict, which inverts the sampler's steps, but one of this model's depends on "
            "the network's output alone, and so has no inverse: take checkpointing = step"
        )
    factor = amplification(found, mixing)
    if factor > AMPLIFICATION:
        raise ConfigError(
            f"the inverse of {len(found)} steps with algorithm.mixing_coeff = {mixing:g} enlarges rounding errors "
            f"{factor:.0e} times, and {AMPLIFICATION:.0e} times is the limit of checkpointing = edict: set "
            "mixing_coeff nearer to 1, or take fewer sampling.steps"
        )
    return found


def amplification(slopes: Sequence[float], mixing: float) -> float:
    """By how much the inverse of a chain enlarges an error of its last states, what the network adds left aside."""
    one, zero = (torch.tensor(value, dtype=torch.float64) for value in (1.0, 0.0))
    inverse = torch.stack([torch.stack(unmixed(*column, mixing)) for column in ((one, zero), (zero, one))], dim=1)
    whole = torch.linalg.matrix_norm(torch.linalg.matrix_power(inverse, len(slopes)), 2)
    return (whole / torch.tensor(slopes, dtype=torch.float64).prod()).item()


def coupled_chain(
    model: Model,
    cond: Cond,
    draw: Draw,
    sde: Sde,
    grad_steps: Sequence[int],
    *,
    mixing: float,
    compare: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Chain:
    """Samples N = len(draw) latents by EDICT, with a graph through the steps `grad_steps`, as `backprop.chain` does.

    The latents are the x of the last pair, which differs little from y. Noise is `sample`'s own; x and y are float64,
    and the network is given them in `dtype`, which is that of the result as well. Each step asks the network twice.
    Of the trained part the first and the last pair are kept, whatever its length: the backward pass inverts one
    half-step after the other, and the call that this takes gives its gradient too. At steps that are not trained the
    network's outputs are constants. `compare` measures the distance from the reference, as a mean over half-steps.

    Raises ConfigError where the steps cannot be inverted, and in the backward pass DivergedError where the first
    trained state is not found again to within TOLERANCE.
    """
    steps = frozenset(grad_steps)
    run = _Run(model, cond, sde, steps, invertible_slopes(model, sde, mixing), mixing, compare, dtype)
    x = draw.noise(0, model.latent_shape, model.device).double()
    with torch.no_grad():
        x, y, _ = run.forward(x, x, range(run.first))
    if not steps:
        return Chain(x.to(dtype), None)
    found: Any = _Inverted.apply(x.detach().requires_grad_(), y, run)
    return Chain(found[0], found[1] if compare else None)


@dataclass(frozen=True)
class _Run:
    """A coupled chain: everything but its states."""

    model: Model
    cond: Cond
    sde: Sde
    steps: frozenset[int]
    """The trained steps."""
    slopes: Sequence[float]
    mixing: float
    compare: bool
    dtype: torch.dtype
    """Of what the network is given."""

    @property
    def first(self) -> int:
        """The first trained step; T where there is none."""
        return min(self.steps, default=len(self.sde))

    def shift(self, step: int, other: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a half-step adds [N,*D], and at a trained step [N] the distance of the network from the reference."""
        t, seen = times(self.sde, step, other), other.to(self.dtype)
        # An estimate without what the latent itself has in it: the network's output alone, times a number.
        output = self._estimate(step, seen) - without_output(self.model, self.sde, step, seen.double())
        added, _ = self.sde.step(torch.zeros_like(output), output, step)
        if not (self.compare and step in self.steps):
            return added, None
        with torch.no_grad(), self.model.weights.reference():
            far = self._estimate(step, seen) - without_output(self.model, self.sde, step, seen.double())
        return added, mean_square(output - far) * self.model.process.output_scale(t).square()

    def _estimate(self, step: int, x: Tensor) -> Tensor:
        """The network's estimate of x_0 [N,*D]."""
        return self.model.denoise(x, times(self.sde, step, x), self.cond).double()

    def forward(self, x: Tensor, y: Tensor, steps: range) -> tuple[Tensor, Tensor, Tensor]:
        """The pair after `steps`, and [N] the mean distance from the reference over their trained half-steps."""
        gaps: list[Tensor] = []

        def shift(other: Tensor) -> Tensor:
            added, gap = self.shift(step, other)
            gaps.extend([] if gap is None else [gap])
            return added

        for step in steps:
            x, y = coupled_step(x, y, self.slopes[step], shift, self.mixing, step % 2 == 1)
        return x, y, torch.stack(gaps).mean(dim=0) if gaps else x.new_zeros(len(x))

    def back(self, step: int, pair: Pair, gradients: Pair, gap: Tensor) -> tuple[Pair, Pair]:
        """The pair before a step and the gradients with respect to it, from those after it.

        Adds the weights' gradients to theirs. `gap` [N] is the gradient with respect to each half-step's distance.
        """
        y_first, slope = step % 2 == 1, self.slopes[step]
        x, y = mixed_gradients(*gradients, self.mixing)
        moved, other = (x, y) if y_first else (y, x)  # the inverse begins with the latent that was moved last

        def shift(at: Tensor) -> Tensor:
            nonlocal moved, other
            added, gradient = self._pulled_back(step, at, moved, gap)
            moved, other = other + gradient, slope * moved
            return added

        pair = inverse_step(*pair, slope, shift, self.mixing, y_first)
        return pair, (moved, other) if y_first else (other, moved)

    def _pulled_back(self, step: int, at: Tensor, gradient: Tensor, gap: Tensor) -> Pair:
        """The shift at a latent, and the gradient with respect to this of <gradient, shift> + <gap, distance>."""
        trained = step in self.steps
        with torch.set_grad_enabled(trained):
            leaf = at.detach().requires_grad_(trained)
            added, distance = self.shift(step, leaf)
        if added.requires_grad:
            outputs, weights = ([added], [gradient]) if distance is None else ([added, distance], [gradient, gap])
            torch.autograd.backward(outputs, weights)
        return added.detach(), torch.zeros_like(at) if leaf.grad is None else leaf.grad


class _Inverted(torch.autograd.Function):
    """A coupled chain from its first trained step on, of which the first and the last pair are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, run: _Run) -> Pair:
        after_x, after_y, gaps = run.forward(x, y, range(run.first, len(run.sde)))
        ctx.run = run
        ctx.save_for_backward(x, y, after_x, after_y)
        return after_x.to(run.dtype), gaps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        run: _Run = ctx.run
        start_x, start_y, x, y = ctx.saved_tensors
        pair, found = (x, y), (gradients[0].double(), torch.zeros_like(y))
        gap = gradients[1] / (2 * len(run.steps))
        for step in reversed(range(run.first, len(run.sde))):
            pair, found = run.back(step, pair, found, gap)
        require_inverted(pair, (start_x, start_y))
        return *found, None


def require_inverted(pair: Pair, kept: Pair) -> None:
    """Raises DivergedError where an inverted pair is off by more than TOLERANCE, and so are the gradients by it."""
    off = inversion_error(pair, kept)
    if off > TOLERANCE:  # not where it is NaN: the loss, which is checked next, is so as well
        raise DivergedError(
            f"the states that checkpointing = edict found by inversion are off by {off:.1e} of their size, and "
            f"{TOLERANCE:g} is the limit; no weights were touched. Take algorithm.checkpointing = step, fewer "
            "sampling.steps, algorithm.mixing_coeff nearer to 1, or precision = fp32"
        )


def inversion_error(pair: Pair, kept: Pair) -> float:
    """The largest difference between two pairs, in units of the root mean square of `kept`."""
    found, expected = torch.stack(pair), torch.stack(kept)
    return ((found - expected).abs().max() / expected.square().mean().sqrt()).item()
