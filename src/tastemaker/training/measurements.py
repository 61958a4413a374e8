"""What a round or an evaluation measures on its images, over all processes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from tastemaker.drawings.judge import judge
from tastemaker.rewards.expression import labels
from tastemaker.runs.checkpoint import State
from tastemaker.spread import moments
from tastemaker.training.draws import share
from tastemaker.training.session import Session
from tastemaker.training.update import tensor


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


def diversity(
    x: Tensor, prompts: Sequence[str], everyone: Sequence[str] | None = None, accelerator: Accelerator | None = None
) -> float:
    """Mean standard deviation of a pixel over the images of a prompt, in [0, 0.5]; 0 when they are all the same.

    Of the images [B,3,H,W] of all processes, where `everyone` are the prompts of them all.
    """
    several = [prompt for prompt, count in Counter(everyone or prompts).items() if count > 1]
    spreads = []
    for prompt in several:
        own = x[[place for place, other in enumerate(prompts) if other == prompt]].double()
        count, total = _everywhere(accelerator, torch.tensor(float(len(own)))), _everywhere(accelerator, own.sum(dim=0))
        square = _everywhere(accelerator, (own - total / count).square().sum(dim=0))
        spreads.append((square / count).sqrt().mean().item())
    return math.fsum(spreads) / len(spreads) if spreads else 0.0


def _everywhere(accelerator: Accelerator | None, values: Tensor) -> Tensor:
    """The sum over all processes, on the CPU."""
    if accelerator is None or accelerator.num_processes == 1:
        return values
    return tensor(accelerator.reduce(values.to(accelerator.device), "sum")).cpu()


def verdicts(session: Session, images: Tensor, prompts: Sequence[str]) -> list[bool | None]:
    """Whether each image shows its prompt, by the judge; None where model or prompt are not of its world."""
    if session.config.model != "bundled":
        return [None] * len(prompts)
    return [None if verdict is None else verdict.correct for verdict in judge(images, prompts)]


def share_correct(
    correct: Sequence[bool | None], name: str, accelerator: Accelerator | None = None
) -> dict[str, float]:
    """The share of all processes' images found right under `name`; nothing where none could be judged."""
    known = [verdict for verdict in correct if verdict is not None]
    right, judged = _everywhere(accelerator, torch.tensor([float(sum(known)), float(len(known))])).tolist()
    return {name: right / judged} if judged else {}


def gathered(accelerator: Accelerator, own: Tensor, samples: int, slices: int) -> Tensor:
    """Every process' values [B / world] in the round's order, [B] float32 on the CPU."""
    world = accelerator.num_processes
    if world == 1:
        return own
    everyone = tensor(accelerator.gather(own.to(accelerator.device))).cpu()
    order = torch.tensor([place for rank in range(world) for place in share(samples, slices, rank, world)])
    return torch.empty(samples).index_copy_(0, order, everyone)
