"""GRPO: group-relative advantages and a divergence from the reference in the loss (Flow-GRPO)."""

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
class GRPO:
    """Group-relative policy optimisation.

    The clipped estimator plus `kl` times the exact divergence from the reference. Group-relative advantages are
    `advantage.normalise = group`; `selection = nonzero` leaves out groups whose rewards are all the same. Flow-GRPO's
    public code divides its divergence by 2 g^2 without the step's length; here it is the Gaussians' own.
    """

    name: ClassVar[str] = "grpo"
    needs: ClassVar[Literal["rollouts"]] = "rollouts"

    clip: Annotated[float, Gt(0)] = 1e-4
    """Clip range of the ratio of mean (per-element) probabilities."""
    kl: Annotated[float, Ge(0)] = 0.04
    """Weight of the divergence from the reference; 0 spares its forward passes."""
    ratio: Literal["plain", "normalised"] = "plain"
    """`normalised`: the log-ratio without its bias, and times the step's noise, so that it is spread alike at all steps
    (GRPO-Guard; with `advantage.step_weights = inverse-dt`). Its clip range is another one."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")

    @property
    def requirements(self) -> Requirements:
        plain = self.ratio == "plain"
        return Requirements(
            reference=self.kl > 0, kl=self.kl, sampling_noise=not plain, passes_beside=int(self.kl > 0),
            score_weight=1.0 if plain and self.kl == 0 else None,
        )  # fmt: skip

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
        if self.ratio == "normalised":
            std = policy.std.flatten(1).mean(dim=1)
            log_ratio = losses.normalised_log_ratio(log_ratio, task.drift(rows, policy), std)
        loss, metrics = losses.clipped_surrogate(log_ratio.exp(), step.advantage, self.clip), {}
        if self.kl > 0:
            kl = losses.gaussian_kl(policy.mean, task.reference(step).mean, policy.std, task.reduction)
            loss, metrics = loss + self.kl * kl, {"kl": kl.detach()}
        return loss, ratio_metrics(log_ratio, self.clip) | metrics
