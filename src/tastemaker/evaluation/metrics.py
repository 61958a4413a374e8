"""What is measured on images: diversity, and whether the judge finds them right."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tastemaker.drawings.judge import judge

Reduce = Callable[[Tensor], Tensor]
"""The sum of a tensor over all processes."""


def diversity(
    x: Tensor, prompts: Sequence[str], everyone: Sequence[str] | None = None, reduce: Reduce = lambda values: values
) -> float:
    """Mean standard deviation of a pixel over the images of a prompt, in [0, 0.5]; 0 when they are all the same.

    Of images [B,3,H,W] in [0,1]. Where several processes have images, `everyone` are the prompts of them all and
    `reduce` sums over them.
    """
    several = [prompt for prompt, count in Counter(everyone or prompts).items() if count > 1]
    spreads = []
    for prompt in several:
        own = x[[index for index, other in enumerate(prompts) if other == prompt]].double()
        count, total = reduce(torch.tensor(float(len(own)))), reduce(own.sum(dim=0))
        square = reduce((own - total / count).square().sum(dim=0))
        spreads.append((square / count).sqrt().mean().item())
    return math.fsum(spreads) / len(spreads) if spreads else 0.0


def diversity_by_image(x: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B] what each image contributes to `diversity`; NaN for an image that is its prompt's only one.

    Mean over the pixels of (x - mean)^2 / std, with the mean and the deviation of the prompt's images: its mean over
    the images of a prompt is the mean of std, which is what `diversity` averages over prompts.
    """
    found = torch.full((len(x),), torch.nan, dtype=torch.float64)
    for prompt, count in Counter(prompts).items():
        own = [index for index, other in enumerate(prompts) if other == prompt]
        if count > 1:
            images = x[own].double()
            squares = (images - images.mean(dim=0)).square()
            std = squares.mean(dim=0).sqrt()
            found[own] = torch.where(std > 0, squares / std, 0.0).flatten(1).mean(dim=1)
    return found


def verdicts(images: Tensor, prompts: Sequence[str], *, judged: bool) -> list[bool | None]:
    """Whether each image shows its prompt, by the judge of the bundled model's world.

    None for a prompt that is not of that world, and for all of them unless `judged`.
    """
    if not judged:
        return [None] * len(prompts)
    return [None if verdict is None else verdict.correct for verdict in judge(images, prompts)]


def share_correct(correct: Sequence[bool | None], reduce: Reduce = lambda values: values) -> dict[str, float]:
    """`judge/correct`, the share of the images that were found right; nothing where none could be judged."""
    known = [verdict for verdict in correct if verdict is not None]
    right, judged = reduce(torch.tensor([float(sum(known)), float(len(known))])).tolist()
    return {"judge/correct": right / judged} if judged else {}
