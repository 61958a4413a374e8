"""NFT: negative-aware fine-tuning in the forward process (DiffusionNFT, Zheng et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from tastemaker.algorithms.requirements import Requirements, SamplingAverage
from tastemaker.constraints import check_constraints

if TYPE_CHECKING:
    from torch import Tensor

    from tastemaker.algorithms.base import Task
    from tastemaker.types import Metrics, Noised, Rollout, Rows


@dataclass(frozen=True)
class NFT:
    """Negative-aware fine-tuning: good images are imitated, bad ones avoided, without likelihoods.

    span / beta (g |v+ - v|^2 + (1 - g) |v- - v|^2) + kl |v_theta - v_ref|^2 with v+ and v- on either side of the
    sampling policy's own prediction, and g = (1 + clip(A / span, -1, 1)) / 2. The factor `span` is the public code's
    (its adv_clip_max): in front of g it makes A / 2 + span / 2 of it, whatever the span.
    """

    name: ClassVar[str] = "nft"
    needs: ClassVar[Literal["samples"]] = "samples"

    beta: Annotated[float, Gt(0)] = 1.0
    """How far the implicit policies v+ and v- go from the sampling policy, in units of the network's own move."""
    span: Annotated[float, Gt(0)] = 5.0
    """Advantage at which an image is only imitated, or only avoided; also the factor in front of the policy's loss."""
    kl: Annotated[float, Ge(0)] = 0.0
    """Weight of the mean square difference between the network's outputs and the reference's (0.0001 in the public
    code), whatever the weighting."""
    noises: Annotated[int, Ge(1)] = 4
    """Times and noises drawn for each image in a round."""
    guided: bool = True
    """Train the guided prediction, as the images were sampled with it; the paper samples and trains without."""
    weighting: Literal["adaptive", "none"] = "adaptive"
    """`adaptive`: errors of x_0, each square over its mean size (public code). `none`: of the network's output."""

    sampling_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Largest decay of the moving average of the weights that draws a round's images, by round (public code: 0.5 for
    few steps and updates, 0.999 for many); 0: the trained weights draw them."""
    sampling_decay_rate: Annotated[float, Gt(0)] = 0.001
    """By how much that decay rises with each update of the run (public code: 0.001, or 0.0075 with 0.999)."""
    sampling_decay_after: Annotated[int, Ge(0)] = 0
    """Updates before it rises from 0 (public code: 0, or 75 with 0.999)."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")

    @property
    def requirements(self) -> Requirements:
        average = SamplingAverage(self.sampling_decay, self.sampling_decay_rate, self.sampling_decay_after)
        return Requirements(
            reference=self.kl > 0, kl=self.kl, guided=self.guided, rows_per_image=self.noises, passes_before=1,
            passes_beside=int(self.kl > 0),
            sampling_average=average if self.sampling_decay > 0 else None,
        )  # fmt: skip

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """`noises` rows for each selected image, with the sampling policy's residuals."""
        import torch

        from tastemaker.diffusion.sampler import batches
        from tastemaker.types import all_rows

        rows = all_rows(rollout, self.noises)
        times = task.times(rollout.steps)
        with torch.no_grad():
            parts = [
                self._residual(task, rows.select(slice(part.start, part.stop)).noised(times)).float()
                for part in batches(len(rows), task.rows)
            ]
        return replace(rows, before=torch.cat(parts) if parts else rollout.x0[:0])

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N rows, unreduced, and per-row metrics [N]."""
        import torch

        from tastemaker.diffusion import losses

        old = rows.before
        if old is None:
            raise ValueError("rows of NFT come from its prepare")
        # Epoch 0 has the noise that `before` was made with.
        noised = replace(rows, epoch=None).noised(task.times(rows.rollout.steps))
        residual = self._residual(task, noised)
        moved = residual - old
        good = 0.5 + 0.5 * (noised.weight / self.span).clamp(-1, 1)
        policy = losses.negative_aware(moved, old, good, self.beta, self.weighting == "adaptive")
        loss = self.span / self.beta * policy
        metrics = {"good": good, "moved": losses.mean_square(moved).detach()}
        if self.kl > 0:
            with torch.no_grad(), task.model.weights.reference():
                reference = self._residual(task, noised)
            distance = losses.mean_square(residual - reference)
            if self.weighting == "adaptive":  # residuals of x_0, and the divergence is one of the network's output
                distance = distance * task.model.process.output_scale(noised.t).square()
            loss, metrics["kl"] = loss + self.kl * distance, distance.detach()
        return loss, metrics

    def _residual(self, task: Task, noised: Noised) -> Tensor:
        return task.residual(noised, guided=self.guided, of="x0" if self.weighting == "adaptive" else "output")
