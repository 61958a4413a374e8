"""MaPO: preferences between given images, without a reference model (Hong et al. 2024)."""

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
class MaPO:
    """Margin-aware preference optimisation on pairs of images that somebody has compared.

    The denoising loss of the preferred image, and the margin between both images' losses; no reference model is asked.
    """

    name: ClassVar[str] = "mapo"
    needs: ClassVar[Literal["pairs"]] = "pairs"

    beta: Annotated[float, Gt(0)] = 0.1
    """Weight of the margin beside the denoising loss of the preferred image."""
    snr: Annotated[float, Gt(0)] = 0.5
    """By what a denoising loss is multiplied in the score whose margin is taken (the public code's `snr_value`)."""
    noises: Annotated[int, Ge(1)] = 1
    """Times and noises drawn for each pair in each inner epoch."""
    guided: bool = False
    """Ask the network with guidance; the paper does not."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")

    @property
    def requirements(self) -> Requirements:
        return Requirements(guided=self.guided, images_per_row=2, rows_per_image=self.noises)

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """`noises` rows for each pair: a rollout has the preferred images first, then the others in their order."""
        from tastemaker.algorithms.diffusion_dpo import pair_rows

        return pair_rows(rollout, self.noises)

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N rows, unreduced, and per-row metrics [N]."""
        from tastemaker.diffusion import losses
        from tastemaker.tree import concat

        times = task.model.process.times
        both = concat([rows.noised(times), rows.others().noised(times, like=rows)])
        error, error_other = losses.mean_square(task.residual(both, guided=self.guided)).chunk(2)
        loss = losses.margin_aware(error, error_other, self.beta, self.snr, len(times))
        better = (error < error_other).float().detach()
        return loss, {"pair_accuracy": better, "denoising_loss": error.detach()}
