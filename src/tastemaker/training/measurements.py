"""What a round or an evaluation measures on its images, over all processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tastemaker.evaluation.metrics import Reduce, diversity, share_correct, verdicts
from tastemaker.models.bundled import BUNDLED
from tastemaker.rewards.expression import labels
from tastemaker.runs.checkpoint import State
from tastemaker.spread import moments
from tastemaker.training.draws import RoundPart, share
from tastemaker.training.session import Session
from tastemaker.training.update import tensor
from tastemaker.types import Rows


def reward_figures(reward: Tensor, state: State) -> dict[str, float]:
    """Mean and standard deviation of rewards [B], and how far the mean is above the base model's.

    The latter in standard deviations of the base model's rewards (`reward/base_stds`), or where these do not differ,
    in the reward's own unit (`reward/base_difference`).
    """
    mean, std = moments(reward)
    above = mean - state.base_mean
    name, unit = ("base_stds", state.base_std) if state.base_std > 0 else ("base_difference", 1.0)
    return {"reward/mean": mean, "reward/std": std, f"reward/{name}": above / unit}


def parts_means(parts: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each part of a combined reward, in its own units, by the names under which they are logged."""
    names = labels(list(parts))
    return {
        f"reward/parts/{name}": part.double().mean().item() for name, part in zip(names, parts.values(), strict=True)
    }


def everywhere(accelerator: Accelerator) -> Reduce:
    """The sum of a tensor over all processes, on the CPU."""

    def reduce(values: Tensor) -> Tensor:
        if accelerator.num_processes == 1:
            return values
        return tensor(accelerator.reduce(values.to(accelerator.device), "sum")).cpu()

    return reduce


@dataclass(frozen=True)
class RoundImages:
    """The images of a round with their rewards."""

    part: RoundPart
    images: Tensor
    """[b,3,H,W] of this process' images, on the CPU."""
    reward: Tensor
    """[B] of all processes' images."""
    parts: dict[str, Tensor]
    """[B] each, of a combined reward's parts by name."""


def image_figures(session: Session, made: RoundImages) -> dict[str, float]:
    """What a round's record says of its images."""
    own, reduce = made.part.own, everywhere(session.accelerator)
    correct = verdicts(made.images, own.prompts, judged=session.config.model in BUNDLED)
    return {
        **reward_figures(made.reward, session.state),
        "reward/min": made.reward.min().item(),
        "reward/max": made.reward.max().item(),
        **parts_means(made.parts),
        **share_correct(correct, reduce),
        "diversity": diversity(made.images, own.prompts, made.part.draw.prompts, reduce),
    }


def explained_variance(accelerator: Accelerator, rows: Rows) -> dict[str, float]:
    """How much of the returns' variance a value network knew before it learned from them: 1 - Var(R - V) / Var(R).

    Over the rows of all processes; R are the targets of the value loss, as in CleanRL. 1 is a network that knew them, 0
    one that knew no more than their mean. Nothing where there is no value network, or where returns do not differ.
    """
    if rows.value is None or rows.target is None:
        return {}
    target, missed = rows.target.double(), rows.target.double() - rows.value.double()
    sums = torch.stack([torch.ones_like(target), target, target.square(), missed, missed.square()]).sum(dim=1)
    count, first, second, *rest = everywhere(accelerator)(sums.cpu()).tolist()
    variance = second / count - (first / count) ** 2 if count else 0.0
    if not variance > 1e-12 * max(second / max(count, 1), 1e-300):  # but for rounding
        return {}
    return {"value/explained_variance": 1 - (rest[1] / count - (rest[0] / count) ** 2) / variance}


def finished_round(session: Session, queries: int, *figures: Mapping[str, Any]) -> dict[str, Any]:
    """Counts the round and its reward queries; returns its record for metrics.jsonl."""
    session.state.round += 1
    session.state.reward_queries += queries
    record: dict[str, Any] = {"round": session.state.round}
    for found in figures:
        record |= found
    return record | ({"reward_queries": session.state.reward_queries} if queries else {})


def gathered(accelerator: Accelerator, own: Tensor, samples: int, slices: int) -> Tensor:
    """Every process' values [B / world] in the round's order, [B] float32 on the CPU."""
    world = accelerator.num_processes
    if world == 1:
        return own
    everyone = tensor(accelerator.gather(own.to(accelerator.device))).cpu()
    order = torch.tensor([index for rank in range(world) for index in share(samples, slices, rank, world)])
    return torch.empty(samples).index_copy_(0, order, everyone)
