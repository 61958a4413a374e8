"""DDPO: denoising as a decision process, trained with policy gradients (DDPO paper §4.3, A.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Gt

from tastemaker.algorithms.requirements import Requirements
from tastemaker.constraints import check_constraints

if TYPE_CHECKING:
    from torch import Tensor

    from tastemaker.algorithms.base import Task
    from tastemaker.types import Metrics, Rollout, Rows


@dataclass(frozen=True)
class DDPO:
    """Denoising diffusion policy optimisation.

    `is`: the importance-sampled, clipped estimator (Eq. 4 of the paper as implemented in A.1), several updates
    a round. `sf`: the score function (REINFORCE; Eq. 3), which is unbiased for one update a round only.
    """

    name: ClassVar[str] = "ddpo"
    needs: ClassVar[Literal["rollouts"]] = "rollouts"

    estimator: Literal["is", "sf"] = "is"
    """`is`: importance-sampled and clipped. `sf`: score function, for one update a round."""
    clip: Annotated[float, Gt(0)] = 1e-4
    """Clip range of the ratio of mean (per-element) probabilities, as in the paper (A.5)."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")

    @property
    def requirements(self) -> Requirements:
        return Requirements(score_weight=1.0)

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """One row for each selected image and each kept step: B * W rows where all are selected."""
        from tastemaker.types import all_rows

        return all_rows(rollout)

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N rows, unreduced, and per-row metrics [N].

        The network runs once for all rows, guided with the weight used in sampling (DDPO paper B.1).
        """
        from tastemaker.algorithms.ratio import ratio_metrics
        from tastemaker.diffusion import losses

        step = rows.transitions()
        logp = task.log_prob(step)
        log_ratio = logp - step.logp
        ratio = log_ratio.exp()
        if self.estimator == "sf":
            loss = losses.score_function(logp, step.advantage)
        else:
            loss = losses.clipped_surrogate(ratio, step.advantage, self.clip)
        return loss, ratio_metrics(log_ratio, self.clip)
