"""Diffusion-DPO: preferences between given pictures, in the forward process (Wallace et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from tastemaker.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from tastemaker.types import Metrics, Rollout, Rows, Task


@dataclass(frozen=True)
class DiffusionDPO:
    """Direct preference optimisation on pairs of pictures that somebody has compared.

    Both pictures of a pair are noised with the same time and noise, and the network's mean square residuals on them
    are compared with the reference's.
    """

    name: ClassVar[str] = "diffusion-dpo"
    needs: ClassVar[Literal["pairs"]] = "pairs"

    beta: float = 5000.0
    """Inverse temperature, on residuals that are means over elements (the paper's value for SD 1.5 and SDXL)."""
    noises: int = 1
    """Times and noises drawn for each pair in each inner epoch."""
    guided: bool = False
    """Ask the network with guidance; the paper does not."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ConfigError(f"algorithm.beta is {self.beta}, but must be greater than 0 (the paper has 5000)")
        if self.noises < 1:
            raise ConfigError(f"algorithm.noises is {self.noises}, but must be at least 1")

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """`noises` rows for each pair: a rollout has the preferred pictures first, then the others in their order."""
        import torch

        from tastemaker.types import Rows

        count = len(rollout.x0) // 2
        better = torch.arange(count, device=rollout.x0.device).repeat_interleave(self.noises)
        place = torch.arange(self.noises, device=better.device).repeat(count)
        return Rows(rollout, better, place, better + count)

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N rows, unreduced, and per-row metrics [N]."""
        import torch

        from tastemaker import losses
        from tastemaker.algorithms.pairs import joined

        times = range(task.model.process.length)
        both = joined(rows.noised(times), rows.others().noised(times, like=rows))
        weight = None if self.guided else 1.0
        error, error_other = losses.mean_square(task.residual(both, weight)).chunk(2)
        with torch.no_grad(), task.model.reference():
            ref, ref_other = losses.mean_square(task.residual(both, weight)).chunk(2)
        loss = losses.diffusion_dpo(error, error_other, ref, ref_other, self.beta)
        better = (error - ref) < (error_other - ref_other)
        return loss, {"pair_accuracy": better.float().detach(), "denoising_loss": error.detach()}
