"""Direct-Align: the reward's gradient at any time, without a chain (SRPO, Shen et al. 2025, arXiv 2509.06942)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt

from tastemaker.algorithms import reward_backprop
from tastemaker.algorithms.requirements import Requirements
from tastemaker.constraints import check_constraints

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor

    from tastemaker.algorithms.base import Task
    from tastemaker.types import Metrics, Rollout, Rows

_NOISE = 2**44
"""Step counters of the noise that finished latents are given, apart from the sampler's and all other."""


@dataclass(frozen=True)
class DirectAlign:
    """Reward gradients at any timestep, through one call of the network.

    Samples an image without a graph, adds noise that is known, lets the network take `jump` steps of it away, and
    removes the rest exactly, since it is known. So even an early time gives an image that a reward can read. The
    relative reward of the same paper (a prompt with good words against one with bad ones) is a reward, not part of
    this.
    """

    name: ClassVar[str] = "direct-align"
    needs: ClassVar[Literal["prompts"]] = "prompts"

    jump: Annotated[int, Ge(1)] = 4
    """Sampler steps that the network takes at once; the more, the more of the image is its own."""
    noises: Annotated[int, Ge(1)] = 1
    """Noises for each image; each is scored, and the mean of the losses taken."""
    images_per_draw: Annotated[int, Ge(1)] | None = None
    """Images of an update for which the trained step is drawn together; none: all of them. `optimizer.rows` and the
    number of processes do not change the draws."""
    objective: Literal["reward", "distance", "hinge"] = "reward"
    """What is minimised: `reward`: -R. `distance`: |R - target|. `hinge`: max(0, target - R)."""
    target: float | None = None
    """Reward to be reached, for `distance` and `hinge`."""
    scale: Annotated[float, Gt(0)] = 1.0
    """Weight of the reward's loss. Adam does not see it, but the limit of the gradient's norm (`optimizer.clip_norm`)
    is measured beside it."""
    checkpointing: Literal["block", "step", "none"] = "block"
    """Recomputed in the backward pass: `block`: the step, and within it each block of the network, which needs the
    least memory. `step`: the step. `none`: nothing."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")
        reward_backprop.check(self.objective, self.target)

    @property
    def requirements(self) -> Requirements:
        return Requirements(
            gradient_checkpointing=self.checkpointing == "block",
            keep_graphs=self.checkpointing == "none",
            queries=self.noises,
            images_per_draw=self.images_per_draw,
        )

    def steps(self, candidates: Sequence[int], generator: Generator) -> list[int]:
        """A trained step: any of the window's."""
        return reward_backprop.one(candidates, generator)

    def calls(self, steps: Sequence[int], whole: int) -> tuple[int, int]:
        """Calls of the network for an image, without a graph and with one."""
        return whole, self.noises

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """One row for each image."""
        return reward_backprop.rows(rollout)

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N images, which are sampled here; unreduced, and metrics [N]."""
        import torch

        from tastemaker.diffusion.backprop import renoised
        from tastemaker.diffusion.sampler import sample

        draw, cond = reward_backprop.conditioned(rows)
        (step,), recompute = reward_backprop.learning(rows), self.checkpointing != "none"
        x0 = sample(task.model, cond, draw, task.sde).x0
        seen = []
        for number in range(self.noises):
            noise = draw.noise(_NOISE + number, x0.shape[1:], x0.device)
            seen.append(renoised(task.model, cond, x0, noise, task.sde, step, step + self.jump, recompute=recompute))
        rewards = torch.stack([reward_backprop.rewarded(task, rows, x, recompute) for x in seen])
        losses, metrics = reward_backprop.losses_of(rewards, self.objective, self.target, self.scale, 0.0, None)
        return losses.mean(dim=0), metrics
