"""Several rewards as one: each is called once, and the expression combines their answers (docs/guides/rewards.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from tastemaker.errors import RewardError
from tastemaker.rewards.base import FunctionReward, Reward, Space, score
from tastemaker.rewards.expression import (
    Clip,
    Constant,
    Minimum,
    Node,
    Part,
    Product,
    Standardise,
    Sum,
    labels,
    to_text,
    walk,
    weighted_terms,
)
from tastemaker.rewards.labelers.settings import is_label
from tastemaker.rewards.serving.settings import is_remote
from tastemaker.rewards.vlm.settings import is_vlm
from tastemaker.spread import moments

Statistics = dict[str, tuple[float, float]]
"""Mean and standard deviation on the base model's images, by what was measured as text."""


class Combination:
    """A `Reward` that combines the answers of others; each of these is logged by itself too."""

    def __init__(self, name: str, tree: Node, parts: Mapping[str, FunctionReward]) -> None:
        self.name, self.tree, self.parts = name, tree, dict(parts)
        self.statistics: Statistics = {}
        # Statistics are stored without addresses, since a server may have moved when a run is resumed.
        elsewhere = [part for part in parts if is_remote(part) or is_label(part) or is_vlm(part)]
        self._keys = {part: part for part in parts} | dict(zip(elsewhere, labels(elsewhere), strict=True))
        spaces: set[Space] = {reward.space for reward in parts.values()}
        self.space: Space = spaces.pop() if len(spaces) == 1 else "mixed"
        self.may_be_flat = any(isinstance(node, Clip) for node in walk(tree))

    @property
    def without_gradient(self) -> list[str]:
        """The parts that have no gradient."""
        return [part for part, reward in self.parts.items() if not reward.differentiable]

    @property
    def differentiable(self) -> bool:
        return not self.without_gradient

    @property
    def unmeasured(self) -> list[str]:
        """What is to be standardised and has not been measured on the base model's images."""
        return [key for key, _ in self._standardised() if key not in self.statistics]

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The checked rewards [B], as `score(...).total`; of images where some parts are on latents."""
        return score(self if self.space != "mixed" else of_images(self), images, prompts).total

    def combine(self, found: Mapping[str, Tensor]) -> Tensor:
        """The reward [B] from its parts' rewards. Raises RewardError where a standardised value was not measured."""
        return self._value(self.tree, found)

    def terms(self, found: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
        """The weights and values [B] of the sum's terms, from its parts' rewards [B]; `combine` adds them up.

        Raises RewardError where a standardised value was not measured.
        """
        return [(weight, self._value(node, found)) for weight, node in weighted_terms(self.tree)]

    def measure(self, found: Mapping[str, Tensor]) -> None:
        """Computes the statistics of its parts, and of what it standardises, from the parts' rewards [B] of the base
        model's images.

        Raises RewardError where what is standardised is the same for all images, so that it has no deviation.
        """
        self.statistics = {self._keys[name]: moments(found[name]) for name in self.parts}
        for key, node in self._standardised():
            values = self._value(node.of, found)
            mean, std = moments(values)
            if not std:
                raise RewardError(
                    f"{key} divides by the deviation of the base model's images, but all {len(values)} of them have "
                    f"{mean:g}: leave standardise out, or evaluate more images (evaluation.prompts, "
                    "evaluation.per_prompt)"
                )
            self.statistics[key] = mean, std

    def recall(self, measured: Mapping[str, Sequence[float]]) -> None:
        """Sets its statistics, mean and standard deviation, to those that were measured before."""
        keys = [*self._keys.values(), *(key for key, _ in self._standardised())]
        self.statistics = {key: (measured[key][0], measured[key][1]) for key in keys if key in measured}

    def cancel(self) -> None:
        """Ends the calls of its parts that are under way in other threads."""
        for reward in self.parts.values():
            reward.cancel()

    def identity(self) -> str | None:
        """The expression with the identities of the parts that are elsewhere; None where there are none."""
        known = {part: found for part, reward in self.parts.items() if (found := reward.identity()) is not None}
        return to_text(self.tree, lambda part: known.get(part, part)) if known else None

    def _standardised(self) -> list[tuple[str, Standardise]]:
        return [(self._key(node), node) for node in walk(self.tree) if isinstance(node, Standardise)]

    def _key(self, node: Node) -> str:
        return to_text(node, lambda part: self._keys[part])

    def _value(self, node: Node, found: Mapping[str, Tensor]) -> Tensor:
        like = next(iter(found.values()))
        match node:
            case Part(name):
                return found[name]
            case Constant(value):
                return torch.full_like(like, value)
            case Sum(terms):
                return reduce(torch.add, (self._value(term, found) for term in terms))
            case Product(factors):
                return reduce(torch.mul, (self._value(factor, found) for factor in factors))
            case Minimum(of):
                return torch.stack([self._value(one, found) for one in of]).amin(dim=0)
            case Clip(of, low, high):
                return self._value(of, found).clamp(low, high)
            case Standardise(of):
                mean, std = self._measured(self._key(node))
                values = self._value(of, found)
                return ((values.double() - mean) / std).to(values)

    def _measured(self, key: str) -> tuple[float, float]:
        if key not in self.statistics:
            raise RewardError(
                f"the reward {self.name!r} has {key}, which is measured on the base model's images at the start "
                "of a run: outside of one, leave standardise out"
            )
        return self.statistics[key]


def of_images(reward: Reward) -> Reward:
    """The same reward of images alone, for where there are no latents. Raises RewardError where a part has no such.

    Parts that have images and latents encode the images themselves, without gradient.
    """
    if isinstance(reward, FunctionReward):
        if reward.space == "image":
            return reward
        if reward.of_images is None:
            raise RewardError(f"the reward {reward.name} is on latents, and only rewards on images can be used here")
        return replace(reward, function=reward.of_images, space="image", differentiable=False, of_images=None)
    assert isinstance(reward, Combination)
    parts = {name: of_images(part) for name, part in reward.parts.items()}
    made = Combination(reward.name, reward.tree, {n: p for n, p in parts.items() if isinstance(p, FunctionReward)})
    made.statistics = reward.statistics
    return made
