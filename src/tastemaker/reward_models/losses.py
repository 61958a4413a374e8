"""The loss of a reward model: Bradley and Terry's cross-entropy on all pairs of a task (thesis eq. 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tastemaker.reward_models.comparisons import Task


@dataclass(frozen=True)
class Batch:
    """T tasks as tensors: N images in a row, and P pairs of them."""

    first: Tensor
    """[P] int64: row of the pair's first image."""
    second: Tensor
    """[P]"""
    better: Tensor
    """[P] in [0,1]: probability that the first is better."""
    weight: Tensor
    """[P]: those of a task add up to 1."""
    tasks: int


def batch_of(tasks: Sequence[Task], device: torch.device | str = "cpu") -> Batch:
    """The pairs of tasks whose images are in a row, task by task."""
    first, second, better, weight, start = [], [], [], [], 0
    for task in tasks:
        total = sum(pair.weight for pair in task.pairs)
        for pair in task.pairs:
            first.append(start + pair.a)
            second.append(start + pair.b)
            better.append(pair.better)
            weight.append(pair.weight / total)
        start += len(task.images)
    made = [torch.tensor(column, device=device) for column in (first, second, better, weight)]
    return Batch(*made, tasks=len(tasks))


def pair_losses(rewards: Tensor, batch: Batch) -> Tensor:
    """[P] cross-entropy of each pair's label, minus the label's own entropy, so that the least is 0.

    With d = r_first - r_second and the label y: -y log sigmoid(d) - (1 - y) log sigmoid(-d) - H(y). With y of 0 or 1
    this is -log sigmoid(r_winner - r_loser); with 0.5, a tie, it is 0 where both rewards are equal (PickScore,
    trainer/criterions/clip_criterion.py). A softmax over the two scores gives the same. `rewards` [N] are those of the
    batch's images.
    """
    y = batch.better.to(rewards)
    entropy = -(torch.xlogy(y, y) + torch.xlogy(1 - y, 1 - y))
    difference = rewards[batch.first] - rewards[batch.second]
    return F.binary_cross_entropy_with_logits(difference, y, reduction="none") - entropy


def comparison_loss(rewards: Tensor, batch: Batch) -> Tensor:
    """The mean over tasks of the weighted mean over each task's pairs: all pairs of a task are one batch element."""
    return (batch.weight.to(rewards) * pair_losses(rewards, batch)).sum() / batch.tasks


def centering_loss(rewards: Tensor, batch: Batch) -> Tensor:
    """The mean over tasks of the weighted mean of (r_first + r_second)^2 over each task's pairs.

    Comparisons within tasks leave a constant for each prompt, and for whatever else the images of a task share, open;
    this draws it to 0 (Eisenstein et al. 2023, arXiv 2312.09244, equation 2; TRL's `center_rewards_coefficient`).
    """
    return (batch.weight.to(rewards) * (rewards[batch.first] + rewards[batch.second]).square()).sum() / batch.tasks
