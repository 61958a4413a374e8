"""The value network's estimates of a round's rows."""

from __future__ import annotations

import torch
from torch import Tensor

from tastemaker.algorithms.base import Task
from tastemaker.diffusion.sampler import batches
from tastemaker.types import Rows


@torch.no_grad()
def estimate(task: Task, rows: Rows) -> Tensor:
    """Values [N] of the rows' latents before their steps. Raises ValueError for a task without value network."""
    found = [rows.rollout.x0.new_empty(0)]
    for part in batches(len(rows), task.rows):
        found.append(task.estimate(rows.select(slice(part.start, part.stop)).transitions()))
    return torch.cat(found)
