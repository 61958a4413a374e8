"""What an algorithm may use besides its rows: the policy at a transition, the reference's, and denoising residuals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from tastemaker.diffusion import losses
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.process import Grid, transition
from tastemaker.types import Cond, Metrics, Noised, Rollout, Rows, Transitions

if TYPE_CHECKING:
    from tastemaker.rewards.base import Reward

Seen = Callable[[Tensor, Tensor, Tensor, Mapping[str, Tensor]], None]
"""Told of images that a loss has made: their places [N] in the rollout, themselves [N,3,H,W], their rewards [N], and
by name those of a combination's parts."""


def unseen(places: Tensor, images: Tensor, rewards: Tensor, parts: Mapping[str, Tensor]) -> None:
    """Nobody looks."""


@dataclass(frozen=True)
class Policy:
    """The Gaussian p(x_next | x) of N transitions."""

    mean: Tensor
    """[N,*D] float64"""
    std: Tensor
    """[N,1,..]"""
    logp: Tensor
    """[N] log-probability of the rows' x_next."""
    x0: Tensor
    """[N,*D] the estimate of x_0 behind the mean."""


@dataclass(frozen=True)
class Task:
    """What an algorithm may use besides its rows."""

    model: Model
    grid: Grid
    eta: float
    empty: Tensor
    """[1,L,C] text states of the empty prompt."""
    guidance: float
    reduction: losses.Reduction = "mean"
    """Whether log-probabilities and divergences are means or sums over the elements of a latent."""
    value: nn.Module | None = None
    """The value network, of algorithms that have one."""
    rows: int = 8
    """Rows in one forward pass."""
    kl: float = 0.0
    """Weight of the divergence from the reference in the reward, which a controller may move from round to round."""
    reward: Reward | None = None
    """The reward, for algorithms that follow its gradient."""
    seen: Seen = unseen
    """Told of the images that they make."""

    def time(self, rows: Transitions) -> Tensor:
        """[N] the training times at which the rows' steps ask the network."""
        return self.grid.times.to(rows.step.device)[rows.step]

    def estimate(self, rows: Transitions) -> Tensor:
        """[N] what the value network expects of the rows' latents. Raises ValueError where there is none."""
        if self.value is None:
            raise ValueError("the task has no value network")
        return self.value(rows.x, self.time(rows), rows.text if rows.value_text is None else rows.value_text)

    def policy(self, rows: Transitions) -> Policy:
        """The rows' transitions under the model as it is now."""
        cond = Cond(rows.text, self.empty, self.guidance)
        x0 = self.model.denoise(rows.x, self.time(rows), cond)
        mean, std = transition(rows.x.to(x0.dtype), x0, self.grid, rows.step, self.eta)
        return Policy(mean, std, losses.gaussian_logp(rows.x_next, mean, std, self.reduction), x0)

    def log_prob(self, rows: Transitions) -> Tensor:
        """Log-probability [N] of the rows' transitions under the model as it is now."""
        return self.policy(rows).logp

    @torch.no_grad()
    def reference(self, rows: Transitions) -> Policy:
        """The rows' transitions under the reference model, without gradient."""
        with self.model.reference():
            return self.policy(rows)

    def residual(self, rows: Noised, guidance: float | None = None, of: Literal["output", "x0"] = "output") -> Tensor:
        """How far the network's output (noise, v or flow alike), or its estimate of x_0, is off at noised latents.

        [N,*D]. The network is asked with guidance as in sampling ("CFG training", DDPO B.1), or with the weight given.
        """
        process = self.model.process
        shape = (-1, *[1] * (rows.x0.ndim - 1))
        alpha, sigma = (values.reshape(shape).double() for values in process.scales(rows.t))
        x = (alpha * rows.x0 + sigma * rows.noise).to(rows.x0.dtype)
        cond = Cond(rows.text, self.empty, self.guidance if guidance is None else guidance)
        off = self.model.denoise(x, rows.t, cond) - rows.x0
        return off * process.output_scale(rows.t).reshape(shape) if of == "output" else off

    def times(self, steps: Tensor) -> range:
        """The training times that the kept sampler steps [W] stand for: all of them for the whole chain."""
        first, after = int(steps[0]), int(steps[-1]) + 1
        upper = int(self.grid.times[first]) + 1 if first else self.model.process.length
        return range(int(self.grid.times[after]) + 1 if after < len(self.grid) else 0, upper)


class Algorithm(Protocol):
    """A frozen dataclass of hyperparameters with `prepare` and `loss`.

    It may have more: `extras(model)`, a value network to train beside the model's, with `value_lr` and `value_warmup`;
    `keep_groups_together`, where the images of a group must be on one process; `weights = "positive"`, where it takes
    weights and not advantages; `normalise = "minibatch"`, where advantages are standardised in each update; `kl`, and
    `kl_target` for a controller of it. One that needs prompts has `steps(candidates, generator)`, the steps of a
    draw that learn, `calls(steps, whole)`, its network calls for an image without and with a graph, and may have
    `queries`, images scored for each one sampled, and `images_per_draw`, images for which they are drawn together.
    """

    name: ClassVar[str]
    needs: ClassVar[Literal["prompts", "rollouts", "pairs", "samples"]]

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """Rows to learn from; no gradient."""
        ...

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N], unreduced, and metrics [N]."""
        ...
