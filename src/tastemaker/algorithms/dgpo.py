"""DGPO: Diffusion-DPO between the better and the worse images of a group (Luo et al. 2025)."""

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
class DGPO:
    """Direct group preference optimisation.

    -log sigmoid(-beta / G sum of A (e - e_ref)) over the G images of a group, with their denoising losses e at one time
    and noise. Its gradient is that of sigmoid(beta / G sum of A (e - e_ref)) A e for each image; the sigmoid is
    computed once a round. Advantages are those of GRPO: `advantage.normalise = group`.
    """

    name: ClassVar[str] = "dgpo"
    needs: ClassVar[Literal["samples"]] = "samples"

    beta: Annotated[float, Gt(0)] = 100.0
    """Inverse temperature, on residuals that are means over elements (public code)."""
    clip: Annotated[float, Gt(0)] | None = 0.05
    """A row has no gradient where exp(e_old - e) has left [1 - clip, 1 + clip] in the direction of its advantage
    (public code); none clips nothing."""
    kl: Annotated[float, Ge(0)] = 0.0
    """Weight of the mean square difference between the network's outputs and the reference's (0.02 in the public
    code)."""
    noises: Annotated[int, Ge(1)] = 4
    """Times and noises drawn for each group in a round."""
    guided: bool = True
    """Train the guided prediction, as the images were sampled with it."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")

    @property
    def requirements(self) -> Requirements:
        return Requirements(
            keep_groups_together=True, reference=True, kl=self.kl, guided=self.guided, rows_per_image=self.noises,
            passes_before=2, passes_beside=int(self.kl > 0),
        )  # fmt: skip

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """`noises` rows for each selected image, with their denoising losses before the round, and their
        advantages times their group's sigmoid."""
        import torch

        from tastemaker.diffusion import losses
        from tastemaker.diffusion.sampler import batches
        from tastemaker.types import all_rows

        rows = all_rows(rollout, self.noises)
        before, gap = [], []
        for part in batches(len(rows), task.rows):
            noised = self._noised(task, rows.select(slice(part.start, part.stop)))
            with torch.no_grad():
                error = losses.mean_square(task.residual(noised, guided=self.guided))
                with task.model.weights.reference():
                    reference = losses.mean_square(task.residual(noised, guided=self.guided))
            before.append(error)
            gap.append(error - reference)
        if not before:
            nothing = rollout.x0.new_empty(0)
            return replace(rows, before=nothing, advantage=nothing)
        weight = self._sigmoid(rows, torch.cat(gap))
        return replace(rows, before=torch.cat(before), advantage=weight * rows.advantages())

    def _sigmoid(self, rows: Rows, gap: Tensor) -> Tensor:
        """[N] sigmoid of beta / G times the sum of A (e - e_ref) over the rows of the same group and noise."""
        import torch

        if rows.rollout.group is None:
            raise ValueError("DGPO needs groups")
        key = rows.rollout.group[rows.image] * self.noises + rows.step_index
        _, place = key.unique(return_inverse=True)
        terms = rows.advantages() * gap
        sums, counts = terms.new_zeros(len(terms)), terms.new_zeros(len(terms))
        sums.scatter_add_(0, place, terms)
        counts.scatter_add_(0, place, torch.ones_like(terms))
        return (self.beta * sums / counts.clamp(min=1)).sigmoid()[place]

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N rows, unreduced, and per-row metrics [N]."""
        import torch

        from tastemaker.diffusion import losses

        if rows.before is None:
            raise ValueError("rows of DGPO come from its prepare")
        noised = self._noised(task, rows)
        residual = task.residual(noised, guided=self.guided)
        error, advantage = losses.mean_square(residual), rows.advantages()
        ratio = (rows.before - error.detach()).exp()
        loss, metrics = advantage * error, {"denoising_loss": error.detach(), "ratio_deviation": (ratio - 1).abs()}
        if self.clip is not None:
            done = (ratio - 1) * advantage.sign() > self.clip
            loss, metrics["clip_fraction"] = torch.where(done, loss.detach(), loss), done.float()
        if self.kl > 0:
            with torch.no_grad(), task.model.weights.reference():
                reference = task.residual(noised, guided=self.guided)
            distance = losses.mean_square(residual - reference)
            loss, metrics["kl"] = loss + self.kl * distance, distance.detach()
        return loss, metrics

    def _noised(self, task: Task, rows: Rows) -> Noised:
        """The rows' latents, with the time and noise of their group's first image: a group's are the same."""
        group = rows.rollout.group
        if group is None:
            raise ValueError("DGPO needs groups")
        first = (group == group[rows.image][:, None]).int().argmax(dim=1)  # of several greatest values the first one
        # Epoch 0 has the noise that the sigmoids were made with.
        return rows.noised(task.times(rows.rollout.steps), like=replace(rows, image=first, epoch=None))
