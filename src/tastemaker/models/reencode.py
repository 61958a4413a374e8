"""Pictures through the VAE and back, as the public RWR code trains on them."""

from __future__ import annotations

import torch
from torch import Tensor

from tastemaker.sample import batches
from tastemaker.task import Task
from tastemaker.types import Rollout


@torch.no_grad()
def reencoded(task: Task, rollout: Rollout) -> Tensor:
    """Latents [B,*D] of the rollout's decoded pictures; the posterior's means, with less noise than its samples."""
    parts = batches(len(rollout.x0), task.rows)
    return torch.cat(
        [task.model.picture_latents(task.model.decode(rollout.x0[part.start : part.stop])) for part in parts]
    )
