"""The rewards of an evaluation's images, as they are on disk: asked batch by batch, and kept as they come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tastemaker.evaluation.evaluation_files import BatchKey, EvaluationFolder, storing
from tastemaker.evaluation.evaluation_plan import EvaluationPlan, PromptSet
from tastemaker.rewards.base import FunctionReward, combined, functions, leaf_scores
from tastemaker.rewards.combination import Combination
from tastemaker.rewards.expression import labels

WHOLE = -1
"""Number of the only batch of rewards that are given all images at once."""


@dataclass(frozen=True)
class ImageScores:
    """The rewards of every image."""

    values: Mapping[tuple[str, str, str], NDArray[np.float64]]
    """[N] by the reward's name, the model's label and the prompt set's name."""


def score_images(plan: EvaluationPlan, folder: EvaluationFolder, advance: Callable[[int], None]) -> ImageScores:
    """Asks for the rewards that the folder does not have yet; calls `advance` with the number of batches done.

    Raises RewardError where a reward fails: what was answered before stays. Rewards see the images as they are on disk,
    with 8 bits a channel, so that an evaluation that was stopped gives the same numbers.
    """
    leaves = functions(plan.rewards)
    names = _names(leaves)
    for name, leaf in leaves.items():
        for model in plan.models:
            for prompt_set in plan.prompt_sets:
                for number, part in _batches(plan, prompt_set, leaf):
                    key = (model.label, prompt_set.name, number)
                    if (names[name], key) not in folder.scores:
                        _score(plan, folder, names[name], leaf, key, prompt_set, part)
                    advance(1)
    return ImageScores(_combined(plan, folder, leaves))


def _names(leaves: Mapping[str, FunctionReward]) -> dict[str, str]:
    """Names for scores.jsonl, without the addresses of servers, which may have moved when an evaluation goes on."""
    return dict(zip(leaves, labels(list(leaves)), strict=True))


def score_batches(plan: EvaluationPlan) -> int:
    """How many batches are asked for in all."""
    return sum(
        len(_batches(plan, prompt_set, leaf)) * len(plan.models)
        for leaf in functions(plan.rewards).values()
        for prompt_set in plan.prompt_sets
    )


def _batches(plan: EvaluationPlan, prompt_set: PromptSet, leaf: FunctionReward) -> list[tuple[int, range]]:
    if leaf.whole:
        return [(WHOLE, range(len(prompt_set.draw)))]
    return list(enumerate(plan.parts(prompt_set)))


def _score(
    plan: EvaluationPlan,
    folder: EvaluationFolder,
    name: str,
    leaf: FunctionReward,
    key: BatchKey,
    prompt_set: PromptSet,
    part: range,
) -> None:
    label, set_name, number = key
    images = folder.read(label, prompt_set, part)
    latents = None
    if leaf.space == "latent":
        numbers = range(len(plan.parts(prompt_set))) if number == WHOLE else [number]
        latents = torch.cat([folder.latents((label, set_name, one)) for one in numbers])
    prompts = [prompt_set.draw.prompts[index] for index in part]
    answer = leaf_scores({name: leaf}, images, prompts, latents)[name]
    with storing(folder.path):
        folder.add_scores(name, key, answer)


def _combined(
    plan: EvaluationPlan, folder: EvaluationFolder, leaves: Mapping[str, FunctionReward]
) -> dict[tuple[str, str, str], NDArray[np.float64]]:
    """The rewards from their parts. A combination that standardises measures that on the first images, as a run does:
    those of the base model and the first prompt set."""
    names = _names(leaves)

    def found(label: str, prompt_set: PromptSet) -> dict[str, torch.Tensor]:
        return {
            name: torch.tensor(
                [
                    value
                    for number, _ in _batches(plan, prompt_set, leaf)
                    for value in folder.scores[names[name], (label, prompt_set.name, number)]
                ],
                dtype=torch.float32,
            )
            for name, leaf in leaves.items()
        }

    first = found(plan.models[0].label, plan.prompt_sets[0])
    for reward in plan.rewards.values():
        if isinstance(reward, Combination):
            reward.measure(first)
    values = {}
    for model in plan.models:
        for prompt_set in plan.prompt_sets:
            scores = combined(plan.rewards, found(model.label, prompt_set), prompt_set.draw.prompts)
            for name, score in scores.items():
                values[name, model.label, prompt_set.name] = score.total.double().numpy()
    return values
