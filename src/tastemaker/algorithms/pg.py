"""PG: the importance-weighted policy gradient without clipping (B2-DiffuRL D.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from tastemaker.algorithms.requirements import Requirements

if TYPE_CHECKING:
    from torch import Tensor

    from tastemaker.algorithms.base import Task
    from tastemaker.types import Metrics, Rollout, Rows


@dataclass(frozen=True)
class PG:
    """Policy gradient with importance weights, unclipped.

    -A rho: the gradient of DDPO's estimator inside its clip range, at every ratio (B2-DiffuRL D.1).
    """

    name: ClassVar[str] = "pg"
    needs: ClassVar[Literal["rollouts"]] = "rollouts"

    @property
    def requirements(self) -> Requirements:
        return Requirements(score_weight=1.0)

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """One row for each selected image and each kept step."""
        from tastemaker.types import all_rows

        return all_rows(rollout)

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N rows, unreduced, and per-row metrics [N]."""
        from tastemaker.algorithms.ratio import ratio_metrics

        step = rows.transitions()
        log_ratio = task.log_prob(step) - step.logp
        return -step.advantage * log_ratio.exp(), ratio_metrics(log_ratio, None)
