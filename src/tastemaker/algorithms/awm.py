"""AWM: policy gradients whose log-probability is the denoising loss (Advantage Weighted Matching, Xue et al. 2025)."""

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
class AWM:
    """Advantage weighted matching: the denoising loss weighted by signed advantages, with a clipped ratio.

    PPO's clipped surrogate of exp(log p - log p_old), where log p is minus the denoising loss of a finished image at a
    time and noise, and the old one that of the model that drew the images at the same time and noise. Advantages are
    those of GRPO: `advantage.normalise = group`.
    """

    name: ClassVar[str] = "awm"
    needs: ClassVar[Literal["samples"]] = "samples"

    clip: Annotated[float, Gt(0)] = 1.0
    """Clip range of the ratio; 1 is nearly none (public code)."""
    weighting: Literal["uniform", "ghuber"] = "uniform"
    """log p of a mean square residual e of the network's output: `uniform`: -e (paper). `ghuber`: -sigma e^p / p with p
    of `ghuber_power`, as in the public code's configs."""
    ghuber_power: Annotated[float, Gt(0)] = 0.25
    """p of `ghuber`."""
    kl: Annotated[float, Ge(0)] = 0.0
    """Weight of the mean square difference between the network's outputs and the reference's (0.003 or 0.0001 in the
    public code)."""
    noises: Annotated[int, Ge(1)] = 6
    """Times and noises drawn for each image in a round."""
    guided: bool = True
    """Train the guided prediction, as the images were sampled with it; the public code samples and trains without."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")

    @property
    def requirements(self) -> Requirements:
        return Requirements(
            reference=self.kl > 0, kl=self.kl, guided=self.guided, rows_per_image=self.noises, passes_before=1,
            passes_beside=int(self.kl > 0),
        )  # fmt: skip

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """`noises` rows for each selected image, with their log-probabilities before the round."""
        import torch

        from tastemaker.diffusion.sampler import batches
        from tastemaker.types import all_rows

        rows, parts = all_rows(rollout, self.noises), []
        for part in batches(len(rows), task.rows):
            noised = rows.select(slice(part.start, part.stop)).noised(task.times(rollout.steps))
            with torch.no_grad():
                parts.append(self._log_prob(task, noised, task.residual(noised, guided=self.guided)))
        return replace(rows, before=torch.cat(parts) if parts else rollout.x0.new_empty(0))

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N rows, unreduced, and per-row metrics [N]."""
        import torch

        from tastemaker.algorithms.ratio import ratio_metrics
        from tastemaker.diffusion import losses

        if rows.before is None:
            raise ValueError("rows of AWM come from its prepare")
        # Epoch 0 has the noise that `before` was made with.
        noised = replace(rows, epoch=None).noised(task.times(rows.rollout.steps))
        residual = task.residual(noised, guided=self.guided)
        log_ratio = self._log_prob(task, noised, residual) - rows.before
        loss = losses.clipped_surrogate(log_ratio.exp(), noised.weight, self.clip)
        metrics = ratio_metrics(log_ratio, self.clip) | {"denoising_loss": losses.mean_square(residual).detach()}
        if self.kl > 0:
            with torch.no_grad(), task.model.weights.reference():
                reference = task.residual(noised, guided=self.guided)
            distance = losses.mean_square(residual - reference)
            loss, metrics["kl"] = loss + self.kl * distance, distance.detach()
        return loss, metrics

    def _log_prob(self, task: Task, noised: Noised, residual: Tensor) -> Tensor:
        from tastemaker.diffusion import losses

        error = losses.mean_square(residual.double())
        if self.weighting == "uniform":
            return -error
        return -losses.generalised_huber(error, self.ghuber_power) * task.model.process.scales(noised.t)[1]
