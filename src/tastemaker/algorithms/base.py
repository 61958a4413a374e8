"""What an algorithm may use besides its rows: the policy at a transition, the reference's, and denoising residuals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from tastemaker.diffusion import losses
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sde import Sde
from tastemaker.types import Metrics, Noised, Rollout, Rows, Transitions

if TYPE_CHECKING:
    from numpy.random import Generator

    from tastemaker.algorithms.requirements import Requirements
    from tastemaker.rewards.base import Reward

OnImages = Callable[[Tensor, Tensor, Tensor, Mapping[str, Tensor]], None]
"""Called with the images that a loss has made: their indices [N] in the rollout, the images [N,3,H,W], their rewards
[N], and by name those of a combination's parts."""


def ignore_images(indices: Tensor, images: Tensor, rewards: Tensor, parts: Mapping[str, Tensor]) -> None:
    """For tasks whose images nobody looks at."""


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
    sde: Sde
    """The sampler's steps."""
    reduction: losses.Reduction = "mean"
    """Whether log-probabilities and divergences are means or sums over the elements of a latent."""
    value: nn.Module | None = None
    """The value network, of algorithms that have one."""
    value_states: Literal["text", "pooled"] = "text"
    """Which states of the prompts it is given."""
    rows: int = 8
    """Rows in one forward pass."""
    kl: float = 0.0
    """Weight of the divergence from the reference in the reward, which a controller may move from round to round."""
    reward: Reward | None = None
    """The reward, for algorithms that follow its gradient."""
    on_images: OnImages = ignore_images
    """Called with the images that they make."""

    def time(self, rows: Transitions) -> Tensor:
        """[N] the training times at which the rows' steps ask the network."""
        return self.sde.grid.times.to(rows.step.device)[rows.step]

    def estimate(self, rows: Transitions) -> Tensor:
        """[N] what the value network expects of the rows' latents. Raises ValueError where there is none."""
        if self.value is None:
            raise ValueError("the task has no value network")
        states = rows.cond[self.value_states]
        return self.value(rows.x, self.time(rows), states.unsqueeze(1) if self.value_states == "pooled" else states)

    def policy(self, rows: Transitions) -> Policy:
        """The rows' transitions under the model as it is now."""
        x0 = self.model.denoise(rows.x, self.time(rows), rows.cond)
        mean, std = self.sde.step(rows.x.to(x0.dtype), x0, rows.step)
        return Policy(mean, std, losses.gaussian_logp(rows.x_next, mean, std, self.reduction), x0)

    def log_prob(self, rows: Transitions) -> Tensor:
        """Log-probability [N] of the rows' transitions under the model as it is now."""
        return self.policy(rows).logp

    @torch.no_grad()
    def reference(self, rows: Transitions) -> Policy:
        """The rows' transitions under the reference model, without gradient."""
        with self.model.weights.reference():
            return self.policy(rows)

    def residual(self, rows: Noised, *, guided: bool = True, of: Literal["output", "x0"] = "output") -> Tensor:
        """How far the network's output (noise, v or flow alike), or its estimate of x_0, is off at noised latents.

        [N,*D]. The network is asked with guidance as in sampling ("CFG training", DDPO B.1), or without.
        """
        process = self.model.process
        shape = (-1, *[1] * (rows.x0.ndim - 1))
        alpha, sigma = (values.reshape(shape).double() for values in process.scales(rows.t))
        x = (alpha * rows.x0 + sigma * rows.noise).to(rows.x0.dtype)
        off = self.model.denoise(x, rows.t, rows.cond if guided else rows.cond.unguided()) - rows.x0
        return off * process.output_scale(rows.t).reshape(shape) if of == "output" else off

    def times(self, steps: Tensor) -> range:
        """The training times that the kept sampler steps [W] stand for: all of them for the whole chain."""
        times, trained = self.sde.grid.times, self.model.process.times
        first, after = int(steps[0]), int(steps[-1]) + 1
        upper = int(times[first]) + 1 if first else trained.stop
        lower = int(times[after]) + 1 if after < len(times) else trained.start
        # Steps in continuous time may lie closer together than whole numbers do: then the nearest one stands for them.
        return range(lower, upper) if lower < upper else range(upper - 1, upper)


class Algorithm(Protocol):
    """A frozen dataclass of hyperparameters with `prepare` and `loss`."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    name: ClassVar[str]
    """By which configs and presets name it."""
    # Not a Literal: a class variable can be assigned to, so type checkers would refuse Literal["rollouts"] in a class.
    needs: ClassVar[Any]
    """What its rounds are made of. `rollouts`: sampled images with the likelihood of their steps. `samples`: sampled
    images. `pairs`: given images of which one is preferred. `prompts`: nothing sampled before its own loss, since it
    follows the reward's gradient; it is a RewardGradientAlgorithm."""

    @property
    def requirements(self) -> Requirements:
        """What training has to provide under these hyperparameters."""
        ...

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """Rows to learn from; no gradient."""
        ...

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N], unreduced, and metrics [N]."""
        ...


class RewardGradientAlgorithm(Algorithm, Protocol):
    """An algorithm that samples in its loss and follows the reward's gradient."""

    def steps(self, candidates: Sequence[int], generator: Generator) -> list[int]:
        """The steps of a draw through which the gradient flows, out of the window's; at least one."""
        ...

    def calls(self, steps: Sequence[int], whole: int) -> tuple[int, int]:
        """Calls of the network for an image of `whole` steps: without a graph, and with one."""
        ...
