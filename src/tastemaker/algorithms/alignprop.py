"""AlignProp: the reward's gradient through the last steps of the chain (Prabhudesai et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from tastemaker.algorithms import reward_backprop
from tastemaker.algorithms.requirements import Requirements
from tastemaker.constraints import check_constraints
from tastemaker.errors import ConfigError

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor

    from tastemaker.algorithms.base import Task
    from tastemaker.types import Metrics, Rollout, Rows


@dataclass(frozen=True)
class AlignProp:
    """Reward backpropagation with randomised truncation.

    The gradient flows through the last K of the window's steps and through the decoder. K is drawn once for each
    update unless `images_per_draw` says otherwise. The paper says no more than K ~ Uniform(0, 50) (§4.1); its first
    public code, and trl's, draw anew at every step and forward batch, which leaves holes (`truncation = per-step`).
    """

    name: ClassVar[str] = "alignprop"
    needs: ClassVar[Literal["prompts"]] = "prompts"

    truncation: Literal["uniform", "gaussian", "fixed", "per-step"] = "uniform"
    """`uniform`: K from 1 to all steps. `gaussian`: ceil(N(last, spread)), from 1 to all steps but one (the second
    public code: the first trained step is int(N(42, 5)) of 50). `fixed`: the last `last` steps. `per-step`: step i
    of T, from 0, learns with probability (i + 1) / (T + 1), each by itself."""
    last: Annotated[int, Ge(1)] | None = None
    """K for `fixed` (all steps when left out), or the normal's mean for `gaussian` (8 of 50 in the public code)."""
    spread: Annotated[float, Gt(0)] = 5.0
    """Standard deviation of K for `gaussian`."""
    images_per_draw: Annotated[int, Ge(1)] | None = None
    """Images of an update for which the trained steps are drawn together; none: all of them. The public codes draw
    for each forward batch of a GPU (4 images in 2023, 8 in 2024). Whatever it is, `optimizer.rows` and the number of
    processes do not change the draws."""
    objective: Literal["reward", "distance", "hinge"] = "reward"
    """What is minimised: `reward`: -R. `distance`: |R - target|. `hinge`: max(0, target - R)."""
    target: float | None = None
    """Reward to be reached, for `distance` and `hinge`."""
    scale: Annotated[float, Gt(0)] = 1.0
    """Weight of the reward's loss; 0.01 in both public codes. Adam does not see it, but the divergence's weight
    (`algorithm.kl`) and the limit of the gradient's norm (`optimizer.clip_norm`) are measured beside it."""
    kl: Annotated[float, Ge(0)] = 0.0
    """Weight of the mean square difference between the network's outputs and the reference's, at the
    trained steps."""
    checkpointing: Literal["block", "step", "edict", "none"] = "block"
    """Recomputed in the backward pass: `block`: each step, and within it each block of the network, which needs the
    least memory. `step`: each step. `edict`: images are sampled by EDICT's coupled chain, with two network calls a
    step, and its states are found again by inversion; needs `sampling.eta` = 0. `none`: nothing, so that memory grows
    with K."""
    mixing_coeff: Annotated[float, Gt(0), Le(1)] | None = None
    """`edict`: p of the mixing layers, in (0, 1]; 0.93 when left out, as in its paper. The nearer to 1, the smaller
    are the errors of the inversion, and the further apart the two latents of an image."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")
        reward_backprop.check(self.objective, self.target)
        reward_backprop.edict_mixing(self.checkpointing, self.mixing_coeff)
        if self.truncation == "gaussian" and self.last is None:
            raise ConfigError("algorithm.truncation is gaussian: give algorithm.last, the mean number of trained steps")
        if self.truncation in ("uniform", "per-step") and self.last is not None:
            raise ConfigError(
                f"algorithm.last is {self.last}, but with truncation = {self.truncation} the number of steps is drawn: "
                "leave it out, or choose truncation = fixed or gaussian"
            )
        if self.truncation == "fixed" and self.images_per_draw is not None:
            raise ConfigError(
                f"algorithm.images_per_draw is {self.images_per_draw}, but with truncation = fixed nothing is drawn: "
                "leave it out, or choose another truncation"
            )

    @property
    def requirements(self) -> Requirements:
        return Requirements(
            reference=self.kl > 0,
            passes_beside=int(self.kl > 0),
            kl=self.kl,
            gradient_checkpointing=self.checkpointing == "block",
            keep_graphs=self.checkpointing == "none",
            edict_mixing=reward_backprop.edict_mixing(self.checkpointing, self.mixing_coeff),
            images_per_draw=self.images_per_draw,
        )

    def steps(self, candidates: Sequence[int], generator: Generator) -> list[int]:
        """the trained steps, out of the window's; at least one."""
        whole = len(candidates)
        if self.truncation == "fixed":
            return reward_backprop.last(candidates, self.last)
        if self.truncation == "uniform":
            return reward_backprop.last(candidates, int(generator.integers(1, whole + 1)))
        if self.truncation == "gaussian":
            # As the public code, whose first step T - K is int(N(T - last, spread)), drawn anew unless in [1, T - 1].
            mean, most = min(self.last or 1, whole), max(1, whole - 1)
            while not 1 <= (count := math.ceil(generator.normal(mean, self.spread))) <= most:
                pass
            return reward_backprop.last(candidates, count)
        kept = [step for index, step in enumerate(candidates) if index >= generator.integers(whole + 1)]
        return kept or list(candidates)[-1:]

    def calls(self, steps: Sequence[int], whole: int) -> tuple[int, int]:
        """Calls of the network for an image, without a graph and with one."""
        each = reward_backprop.calls_of_step(self.checkpointing)
        return each * (whole - len(steps)), each * len(steps)

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """One row for each image."""
        return reward_backprop.rows(rollout)

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N images, which are sampled here; unreduced, and metrics [N]."""
        made = reward_backprop.sampled(task, rows, self.checkpointing, self.requirements.edict_mixing, self.kl > 0)
        reward = reward_backprop.rewarded(task, rows, made.x0, self.checkpointing != "none")
        return reward_backprop.losses_of(reward, self.objective, self.target, self.scale, self.kl, made.divergence)
