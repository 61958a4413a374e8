"""ReFL: the reward's gradient at one random late step, through its estimate of the image (Xu et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from tastemaker.algorithms import reward_backprop
from tastemaker.algorithms.requirements import Requirements
from tastemaker.constraints import check_constraints

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor

    from tastemaker.algorithms.base import Task
    from tastemaker.types import Metrics, Rollout, Rows


@dataclass(frozen=True)
class ReFL:
    """Reward feedback learning (ImageReward's method).

    Samples without a graph up to a random late step, takes the network's estimate of x_0 there, decodes and scores it.
    The paper's joint loss adds a denoising loss on real pairs: that is prior preservation
    (`prior_preservation.source`, `prior_preservation.weight`), which the released code leaves out.
    """

    name: ClassVar[str] = "refl"
    needs: ClassVar[Literal["prompts"]] = "prompts"

    earliest: Annotated[float, Ge(0), Lt(1)] = 0.75
    """Where the range of late steps begins, as a share of the chain in [0, 1): step 30 of 40 in the public code."""
    images_per_draw: Annotated[int, Ge(1)] | None = None
    """Images of an update for which the trained step is drawn together; none: all of them. The public code draws
    for each forward batch of a GPU, which has 2. `optimizer.rows` and the number of processes do not change the draws.
    """
    objective: Literal["reward", "distance", "hinge"] = "hinge"
    """What is minimised: `reward`: -R. `distance`: |R - target|. `hinge`: max(0, target - R)."""
    target: float | None = 2.0
    """Reward to be reached; 2 is two standard deviations of ImageReward."""
    scale: Annotated[float, Gt(0)] = 1e-3
    """Weight of the reward's loss, beside that of prior preservation."""
    guided: bool = False
    """Ask the network with guidance at the trained step, and before it; the public code does not."""
    kl: Annotated[float, Ge(0)] = 0.0
    """Weight of the mean square difference between the network's output and the reference's, at the
    trained step."""
    checkpointing: Literal["block", "step", "none"] = "block"
    """Recomputed in the backward pass: `block`: the step, and within it each block of the network, which needs the
    least memory. `step`: the step. `none`: nothing."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")
        reward_backprop.check(self.objective, self.target)

    @property
    def requirements(self) -> Requirements:
        return Requirements(
            reference=self.kl > 0,
            passes_beside=int(self.kl > 0),
            kl=self.kl,
            gradient_checkpointing=self.checkpointing == "block",
            keep_graphs=self.checkpointing == "none",
            guided=self.guided,
            images_per_draw=self.images_per_draw,
        )

    def steps(self, candidates: Sequence[int], generator: Generator) -> list[int]:
        """The trained step, out of the window's."""
        return reward_backprop.one(list(candidates)[int(self.earliest * len(candidates)) :], generator)

    def calls(self, steps: Sequence[int], whole: int) -> tuple[int, int]:
        """Calls of the network for an image, without a graph and with one."""
        return steps[0], 1

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """One row for each image."""
        return reward_backprop.rows(rollout)

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N images, which are sampled here; unreduced, and metrics [N]."""
        from tastemaker.diffusion.backprop import chain

        draw, cond = reward_backprop.conditioned(rows)
        (step,), recompute = reward_backprop.learning(rows), self.checkpointing != "none"
        cond = cond if self.guided else cond.unguided()
        made = chain(
            task.model, cond, draw, task.sde, [step], until=step, recompute=recompute, compare=self.kl > 0
        )  # fmt: skip
        reward = reward_backprop.rewarded(task, rows, made.x0, recompute)
        return reward_backprop.losses_of(reward, self.objective, self.target, self.scale, self.kl, made.divergence)
