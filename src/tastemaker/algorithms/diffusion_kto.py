"""Diffusion-KTO: each image is good or bad by itself, in the forward process (Li et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt

from tastemaker.algorithms.requirements import Requirements
from tastemaker.constraints import check_constraints

if TYPE_CHECKING:
    from torch import Tensor

    from tastemaker.algorithms.base import Task
    from tastemaker.types import Metrics, Noised, Rollout, Rows


@dataclass(frozen=True)
class DiffusionKTO:
    """Maximises the utility of images that are labelled good or bad; the two images of a given pair are one of each.

    The utility of an image is the sigmoid of +-beta (g - level), + for the preferred one, where g is the reference's
    denoising loss minus the policy's, and the level the mean of g over the update's images, or 0 where it is negative.
    The level is measured at the start of the round.
    """

    name: ClassVar[str] = "diffusion-kto"
    needs: ClassVar[Literal["pairs"]] = "pairs"

    beta: Annotated[float, Gt(0)] = 5000.0
    """Inverse temperature, on residuals that are means over elements."""
    good_weight: Annotated[float, Gt(0)] = 1.0
    """Weight of the preferred images' losses."""
    bad_weight: Annotated[float, Ge(0)] = 1.0
    """Weight of the other images' losses; 0 learns from the preferred ones alone."""
    noises: Annotated[int, Ge(1)] = 1
    """Times and noises drawn for each pair in a round."""
    guided: bool = False
    """Ask the network with guidance; the paper does not."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")

    @property
    def requirements(self) -> Requirements:
        return Requirements(
            reference=True, guided=self.guided, mean_before=True, images_per_row=2, rows_per_image=self.noises,
            passes_before=2,
        )  # fmt: skip

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """`noises` rows for each pair, with `before` [N,4]: the policy's and the reference's denoising losses, first of
        the preferred image."""
        import torch

        from tastemaker.algorithms.diffusion_dpo import pair_rows
        from tastemaker.diffusion import losses
        from tastemaker.diffusion.sampler import batches

        rows, before = pair_rows(rollout, self.noises), []
        for part in batches(len(rows), task.rows):
            both = self._noised(task, rows.select(slice(part.start, part.stop)))
            with torch.no_grad():
                own = losses.mean_square(task.residual(both, guided=self.guided)).chunk(2)
                with task.model.weights.reference():
                    reference = losses.mean_square(task.residual(both, guided=self.guided)).chunk(2)
            before.append(torch.stack([*own, *reference], dim=1))
        return replace(rows, before=torch.cat(before) if before else rollout.x0.new_empty(0, 4))

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N rows, unreduced, and per-row metrics [N]: the mean of both images'.

        Without the mean over an update (`Rows.level`) the level is 0.
        """
        from tastemaker.diffusion import losses

        if rows.before is None:
            raise ValueError("rows of Diffusion-KTO come from its prepare")
        error, error_other = losses.mean_square(task.residual(self._noised(task, rows), guided=self.guided)).chunk(2)
        _, _, ref, ref_other = rows.before.unbind(dim=1)
        level = error.new_zeros(len(error))
        if rows.level is not None:
            one, two, ref_one, ref_two = rows.level.unbind(dim=1)
            level = ((ref_one + ref_two - one - two) / 2).clamp(min=0)
        good = losses.prospect(ref - error - level, self.beta, good=True)
        bad = losses.prospect(ref_other - error_other - level, self.beta, good=False)
        better = (ref - error) > (ref_other - error_other)
        return (self.good_weight * good + self.bad_weight * bad) / 2, {
            "pair_accuracy": better.float().detach(),
            "denoising_loss": error.detach(),
            "level": level,
        }

    def _noised(self, task: Task, rows: Rows) -> Noised:
        """The preferred images, then the others, with the times and noises of epoch 0, which `before` was made with."""
        from tastemaker.tree import concat

        times, rows = task.model.process.times, replace(rows, epoch=None)
        return concat([rows.noised(times), rows.others().noised(times, like=rows)])
