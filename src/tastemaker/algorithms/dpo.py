"""DPO on denoising steps: the preferred of two sampled trajectories, step by step (D3PO)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Gt, Lt

from tastemaker.algorithms.requirements import Requirements
from tastemaker.constraints import check_constraints

if TYPE_CHECKING:
    from torch import Tensor

    from tastemaker.algorithms.base import Task
    from tastemaker.types import Metrics, Rollout, Rows


@dataclass(frozen=True)
class DPO:
    """Direct preference optimisation of denoising steps, on pairs out of sampled trajectories (D3PO).

    -log sigmoid(beta (log p/p_ref of the preferred - log p/p_ref of the other)) at each kept step. Pairs are images
    of one root where there are branches, and of one prompt otherwise; equal rewards make none.
    """

    name: ClassVar[str] = "dpo"
    needs: ClassVar[Literal["rollouts"]] = "rollouts"

    beta: Annotated[float, Gt(0)] = 0.1
    """Inverse temperature of the preference, on ratios of mean (per-element) probabilities."""
    clip: Annotated[float, Gt(0), Lt(1)] | None = 0.1
    """Both ratios are bounded to [1 - clip, 1 + clip] (D3PO's code); none leaves them."""
    pairs: Literal["all", "best-worst"] = "all"
    """Which pairs of a group: all, or its best against its worst."""
    reference: Literal["base", "sampler"] = "base"
    """`base`: the model that training started from (D3PO). `sampler`: the one that drew the images; no extra pass."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")

    @property
    def requirements(self) -> Requirements:
        base = self.reference == "base"
        return Requirements(
            keep_groups_together=True, reference=base, images_per_row=2, pairs=self.pairs, passes_beside=int(base)
        )

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """One row for each pair and each kept step."""
        import torch

        from tastemaker.algorithms.preference_pairs import pairs
        from tastemaker.types import Rows

        device, kept = rollout.device, rollout.kept
        found = pairs(rollout, self.pairs)
        better, worse = (torch.tensor(side, dtype=torch.int64, device=device) for side in found)
        step_index = torch.arange(kept, device=device).repeat(len(better))
        return Rows(rollout, better.repeat_interleave(kept), step_index, worse.repeat_interleave(kept))

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N pairs' steps, unreduced, and metrics [N]. Both sides go through the network at once."""
        from tastemaker.diffusion import losses
        from tastemaker.tree import concat

        both = concat([rows.transitions(), rows.others().transitions()])
        logp = task.log_prob(both)
        reference = task.reference(both).logp if self.reference == "base" else both.logp
        better, worse = (logp - reference).chunk(2)
        drift, drift_other = ((logp - both.logp).detach().exp() - 1).abs().chunk(2)
        return losses.step_dpo(better, worse, self.beta, self.clip), {
            "pair_accuracy": (better > worse).float().detach(),
            "ratio_deviation": drift.maximum(drift_other),
        }
