"""RWR: reward-weighted regression on the model's own images (Lee et al. 2023; DDPO §4.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge

from tastemaker.algorithms.requirements import Requirements
from tastemaker.constraints import check_constraints

if TYPE_CHECKING:
    from torch import Tensor

    from tastemaker.algorithms.base import Task
    from tastemaker.types import Metrics, Rollout, Rows


@dataclass(frozen=True)
class RWR:
    """Reward-weighted regression.

    The denoising loss on sampled images, times their weights: `advantage.normalise = softmax` (RWR) or `percentile`
    (RWR-sparse, with `selection = nonzero`). Times come from the stretch of the chain that the window keeps.
    """

    name: ClassVar[str] = "rwr"
    needs: ClassVar[Literal["samples"]] = "samples"

    noises: Annotated[int, Ge(1)] = 1
    """Times and noises drawn for each image in each inner epoch."""
    guided: bool = True
    """Train the guided prediction ("CFG training"); without it a second round is worse than the first (DDPO B.1)."""
    latents: Literal["sampler", "vae"] = "sampler"
    """`sampler`: the sampled x_0. `vae`: the decoded image, encoded again, as in the public code."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")

    @property
    def requirements(self) -> Requirements:
        return Requirements(positive_weights=True, guided=self.guided, rows_per_image=self.noises)

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """`noises` rows for each selected image."""
        from tastemaker.types import all_rows

        if self.latents == "vae":
            from tastemaker.algorithms.reencode import reencoded

            rollout = replace(rollout, final=reencoded(task, rollout))
        return all_rows(rollout, self.noises)

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N rows, unreduced, and per-row metrics [N]."""
        from tastemaker.diffusion import losses

        noised = rows.noised(task.times(rows.rollout.steps))
        error = losses.mean_square(task.residual(noised, guided=self.guided))
        return noised.weight * error, {"denoising_loss": error.detach(), "weight": noised.weight}
