"""Diffusion-DPO on the model's own images, of which a reward says which is preferred."""

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
class OnlineDiffusionDPO:
    """Diffusion-DPO on pairs of sampled images.

    In each round the best and the worst image of each group are a pair for Diffusion-DPO's loss, in the forward
    process. Pairs are images of one root where there are branches, and of one prompt otherwise; equal rewards make
    none.
    """

    name: ClassVar[str] = "online-diffusion-dpo"
    needs: ClassVar[Literal["samples"]] = "samples"

    beta: Annotated[float, Gt(0)] = 5000.0
    """Inverse temperature, on residuals that are means over elements."""
    pairs: Literal["best-worst", "all"] = "best-worst"
    """Which pairs of a group: its best against its worst, or all."""
    noises: Annotated[int, Ge(1)] = 1
    """Times and noises drawn for each pair in each inner epoch."""
    guided: bool = False
    """Ask the network with guidance; Diffusion-DPO does not."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")

    @property
    def requirements(self) -> Requirements:
        return Requirements(
            keep_groups_together=True, reference=True, guided=self.guided, images_per_row=2, pairs=self.pairs,
            rows_per_image=self.noises, passes_beside=1,
        )  # fmt: skip

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """`noises` rows for each pair."""
        import torch

        from tastemaker.algorithms.preference_pairs import pairs
        from tastemaker.types import Rows

        found = pairs(rollout, self.pairs)
        better, worse = (torch.tensor(side, dtype=torch.int64, device=rollout.device) for side in found)
        noise_index = torch.arange(self.noises, device=rollout.device).repeat(len(better))
        return Rows(rollout, better.repeat_interleave(self.noises), noise_index, worse.repeat_interleave(self.noises))

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N rows, unreduced, and per-row metrics [N]."""
        from tastemaker.algorithms.diffusion_dpo import pair_loss

        return pair_loss(task, rows, task.times(rows.rollout.steps), self.beta, guided=self.guided)
