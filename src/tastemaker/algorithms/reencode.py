"""Images through the VAE and back, as the public RWR code trains on them."""

from __future__ import annotations

import torch
from torch import Tensor

from tastemaker.algorithms.base import Task
from tastemaker.diffusion.sampler import batches
from tastemaker.types import Rollout


@torch.no_grad()
def reencoded(task: Task, rollout: Rollout) -> Tensor:
    """Latents [B,*D] of the rollout's decoded images; the posterior's means, with less noise than its samples."""
    parts = batches(len(rollout.x0), task.rows)
    return torch.cat(
        [task.model.encode_images(task.model.decode(rollout.x0[part.start : part.stop])) for part in parts]
    )
