"""DPPO: a limit for the divergence in the place of the clip (Flow-DPPO, Ping et al. 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt

from tastemaker.algorithms.requirements import Requirements
from tastemaker.constraints import check_constraints

if TYPE_CHECKING:
    from torch import Tensor

    from tastemaker.algorithms.base import Task
    from tastemaker.types import Metrics, Rollout, Rows


@dataclass(frozen=True)
class DPPO:
    """Divergence proximal policy optimisation.

    The importance-weighted policy gradient without a clip. A row is left out where the exact divergence of its step
    from the sampling policy is above `max_divergence` and its gradient would raise it further. Advantages are those of
    GRPO: `advantage.normalise = group`.
    """

    name: ClassVar[str] = "dppo"
    needs: ClassVar[Literal["rollouts"]] = "rollouts"

    max_divergence: Annotated[float, Gt(0)] = 1e-5
    """Largest divergence of a step from the sampling policy, per element of a latent (`sampling.log_prob = mean`)."""
    kl: Annotated[float, Ge(0)] = 0.0
    """Weight of the divergence from the reference; 0 spares its forward passes."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")

    @property
    def requirements(self) -> Requirements:
        score = None if self.kl > 0 else 1.0
        return Requirements(
            reference=self.kl > 0, kl=self.kl, sampling_noise=True, score_weight=score, passes_beside=int(self.kl > 0)
        )

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """One row for each selected image and each kept step."""
        from tastemaker.types import all_rows

        return all_rows(rollout)

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N rows, unreduced, and per-row metrics [N]."""
        from tastemaker.algorithms.ratio import ratio_metrics
        from tastemaker.diffusion import losses

        step = rows.transitions()
        policy = task.policy(step)
        log_ratio = policy.logp - step.logp
        ratio, divergence = log_ratio.exp(), task.drift(rows, policy).detach()
        loss = losses.divergence_mask(ratio, step.advantage, divergence, self.max_divergence)
        masked = (loss == 0) & (step.advantage != 0)
        metrics = ratio_metrics(log_ratio, None) | {"divergence": divergence, "masked": masked.float()}
        if self.kl > 0:
            kl = losses.gaussian_kl(policy.mean, task.reference(step).mean, policy.std, task.reduction)
            loss, metrics["kl"] = loss + self.kl * kl, kl.detach()
        return loss, metrics
