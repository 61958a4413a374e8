"""AlignProp: the reward's gradient through the last steps of the chain (Prabhudesai et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from tastemaker.algorithms import pathwise
from tastemaker.errors import ConfigError

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor

    from tastemaker.task import Task
    from tastemaker.types import Metrics, Rollout, Rows


@dataclass(frozen=True)
class AlignProp:
    """Reward backpropagation with randomised truncation.

    The gradient flows through the last K of the window's steps and through the decoder. K is drawn once for each
    update, which is what the paper describes; its first public code, and trl's, draw anew at every step instead, which
    leaves holes (`truncation = per-step`).
    """

    name: ClassVar[str] = "alignprop"
    needs: ClassVar[Literal["prompts"]] = "prompts"

    truncation: Literal["uniform", "gaussian", "fixed", "per-step"] = "uniform"
    """`uniform`: K from 1 to all steps. `gaussian`: around `last` with deviation `spread` (the second public code: the
    first step that learns is 42 +- 5 of 50). `fixed`: the last `last` steps. `per-step`: step i of T, from 0, learns
    with probability (i + 1) / (T + 1), each by itself."""
    last: int | None = None
    """K for `fixed` (all steps when left out), or its mean for `gaussian` (8 of 50 in the public code)."""
    spread: float = 5.0
    """Standard deviation of K for `gaussian`."""
    objective: Literal["reward", "distance", "hinge"] = "reward"
    """What is minimised: `reward`: -R. `distance`: |R - target|. `hinge`: max(0, target - R)."""
    target: float | None = None
    """Reward to be reached, for `distance` and `hinge`."""
    kl: float = 0.0
    """Weight of the mean square difference between the network's outputs and the reference's, at the steps that
    learn."""
    checkpointing: Literal["block", "step", "none"] = "block"
    """Recomputed in the backward pass: `block`: each step, and within it each block of the network, which needs the
    least memory. `step`: each step. `none`: nothing, so that memory grows with K."""

    def __post_init__(self) -> None:
        pathwise.check(self.objective, self.target, self.kl)
        if self.last is not None and self.last < 1:
            raise ConfigError(f"algorithm.last is {self.last}, but must be at least 1, or none for all steps")
        if self.truncation == "gaussian" and self.last is None:
            raise ConfigError(
                "algorithm.truncation is gaussian: give algorithm.last, the mean number of steps that learn"
            )
        if self.truncation in ("uniform", "per-step") and self.last is not None:
            raise ConfigError(
                f"algorithm.last is {self.last}, but with truncation = {self.truncation} the number of steps is drawn: "
                "leave it out, or choose truncation = fixed or gaussian"
            )
        if self.spread <= 0:
            raise ConfigError(f"algorithm.spread is {self.spread:g}, but must be greater than 0")

    def steps(self, candidates: Sequence[int], generator: Generator) -> list[int]:
        """The steps of an update that learn, out of the window's; at least one."""
        whole = len(candidates)
        if self.truncation == "fixed":
            return pathwise.last(candidates, self.last)
        if self.truncation == "uniform":
            return pathwise.last(candidates, int(generator.integers(1, whole + 1)))
        if self.truncation == "gaussian":
            # By rejection, as the public code: values outside of the chain are drawn again.
            mean = min(self.last or 1, whole)
            while not 1 <= (count := round(generator.normal(mean, self.spread))) <= whole:
                pass
            return pathwise.last(candidates, count)
        kept = [step for place, step in enumerate(candidates) if place >= generator.integers(whole + 1)]
        return kept or list(candidates)[-1:]

    def calls(self, steps: Sequence[int], whole: int) -> tuple[int, int]:
        """Calls of the network for a picture, without a graph and with one."""
        return whole - len(steps), len(steps)

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """One row for each picture."""
        return pathwise.rows(rollout)

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N pictures, which are sampled here; unreduced, and metrics [N]."""
        from tastemaker.chain import chain

        draw, cond = pathwise.told(task, rows)
        steps, recompute = pathwise.learning(rows), self.checkpointing != "none"
        made = chain(
            task.model, cond, draw, task.grid, task.eta, steps, recompute=recompute, compare=self.kl > 0
        )  # fmt: skip
        reward = pathwise.rewarded(task, rows, made.x0, recompute)
        return pathwise.losses_of(reward, self.objective, self.target, 1.0, self.kl, made.divergence)
