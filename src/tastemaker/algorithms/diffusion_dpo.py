"""Diffusion-DPO: preferences between given images, in the forward process (Wallace et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from tastemaker.algorithms.requirements import Requirements
from tastemaker.constraints import check_constraints

if TYPE_CHECKING:
    from torch import Tensor

    from tastemaker.algorithms.base import Task
    from tastemaker.types import Metrics, Rollout, Rows


@dataclass(frozen=True)
class DiffusionDPO:
    """Direct preference optimisation on pairs of images that somebody has compared.

    Both images of a pair are noised with the same time and noise, and the network's mean square residuals on them
    are compared with the reference's. With `pairs.labels = probabilities` each pair is learned from in both directions,
    as much in each as it is likely to be the right one.
    """

    name: ClassVar[str] = "diffusion-dpo"
    needs: ClassVar[Literal["pairs"]] = "pairs"

    beta: Annotated[float, Gt(0)] = 5000.0
    """Inverse temperature, on residuals that are means over elements (the paper's value for SD 1.5 and SDXL)."""
    noises: Annotated[int, Ge(1)] = 1
    """Times and noises drawn for each pair in each inner epoch."""
    guided: bool = False
    """Ask the network with guidance; the paper does not."""
    drop_captions: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the pairs that are trained without their caption, in [0, 1); the public code has 0.2."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")

    @property
    def requirements(self) -> Requirements:
        return Requirements(
            reference=True,
            guided=self.guided,
            label_probabilities=True,
            images_per_row=2,
            rows_per_image=self.noises,
            passes_beside=1,
        )

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """`noises` rows for each pair: a rollout has the preferred images first, then the others in their order."""
        import torch

        from tastemaker import noise

        draw = rollout.draw
        if self.drop_captions > 0:
            keys = zip(draw.prompt_index, draw.sample_index, strict=True)
            dropped = [noise.drop(self.drop_captions, draw.seed, draw.round, *key) for key in keys]
            rollout = replace(rollout, cond=rollout.cond.dropped(torch.tensor(dropped)))
        return pair_rows(rollout, self.noises)

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N rows, unreduced, and per-row metrics [N]."""
        found = rows.rollout.label
        label = None if found is None else found[rows.image]
        return pair_loss(task, rows, task.model.process.times, self.beta, guided=self.guided, label=label)


def pair_rows(rollout: Rollout, noises: int) -> Rows:
    """`noises` rows for each given pair: the preferred images come first in the rollout, then the others."""
    import torch

    from tastemaker.types import Rows

    count = len(rollout) // 2
    better = torch.arange(count, device=rollout.device).repeat_interleave(noises)
    noise_index = torch.arange(noises, device=better.device).repeat(count)
    return Rows(rollout, better, noise_index, better + count)


def pair_loss(
    task: Task, rows: Rows, times: range, beta: float, *, guided: bool, label: Tensor | None = None
) -> tuple[Tensor, Metrics]:
    """Diffusion-DPO's losses [N] of N rows that are pairs, at times out of `times`, and metrics [N].

    `label` [N]: the probabilities that the first images are the better ones, where that is not certain. A pair whose
    label is 1/2 counts as half right.
    """
    import torch

    from tastemaker.diffusion import losses
    from tastemaker.tree import concat

    both = concat([rows.noised(times), rows.others().noised(times, like=rows)])
    error, error_other = losses.mean_square(task.residual(both, guided=guided)).chunk(2)
    with torch.no_grad(), task.model.weights.reference():
        ref, ref_other = losses.mean_square(task.residual(both, guided=guided)).chunk(2)
    loss = losses.diffusion_dpo(error, error_other, ref, ref_other, beta, label)
    right = ((error - ref) < (error_other - ref_other)).float().detach()
    if label is not None:
        right = torch.where(label > 0.5, right, torch.where(label < 0.5, 1 - right, 0.5))
    return loss, {"pair_accuracy": right, "denoising_loss": error.detach()}
