"""Several rewards as one: each asked once, the answers put together as the expression says (docs/guides/rewards.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from functools import reduce

import torch
from torch import Tensor

from tastemaker.errors import RewardError
from tastemaker.rewards.base import Reward, checked, put_together
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
    walk,
    written,
)
from tastemaker.rewards.serving.settings import is_remote
from tastemaker.rewards.vlm.settings import is_vlm
from tastemaker.spread import moments

Statistics = dict[str, tuple[float, float]]
"""Mean and standard deviation on the base model's images, by what was measured as text."""


class Combination:
    """A reward made of others; every one of them is logged by itself.

    Raises RewardError where the parts do not want the same, images or latents.
    """

    def __init__(self, name: str, tree: Node, rewards: Mapping[str, Reward]) -> None:
        self.__name__ = name
        self.tree, self.rewards = tree, dict(rewards)
        self.statistics: Statistics = {}
        # A server may have moved when a run goes on.
        elsewhere = [part for part in rewards if is_remote(part) or is_vlm(part)]
        self._keys = {part: part for part in rewards} | dict(zip(elsewhere, labels(elsewhere), strict=True))
        spaces = {part: getattr(reward, "space", "image") for part, reward in rewards.items()}
        if len(set(spaces.values())) > 1:
            wanted = ", ".join(f"{part} {space}s" for part, space in spaces.items())
            raise RewardError(f"the parts of the reward {name!r} want different things: {wanted}")
        self.space: str = next(iter(spaces.values()))
        self.may_be_flat = any(isinstance(node, Clip) for node in walk(tree))
        if any(is_remote(part) for part in rewards):
            # Only then: a run compares the identities of rewards that are elsewhere.
            self.identity: Callable[[], str] = self._identity

    @property
    def without_gradient(self) -> list[str]:
        """The parts that have none."""
        return [part for part, reward in self.rewards.items() if not getattr(reward, "differentiable", False)]

    @property
    def differentiable(self) -> bool:
        return not self.without_gradient

    @property
    def unmeasured(self) -> list[str]:
        """What is to be standardised and has not been measured on the base model's images."""
        return [key for key, _ in self._standardised() if key not in self.statistics]

    def __call__(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.combine(self.parts(x, prompts))

    def parts(self, x: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The parts' own rewards [B] by their names. Those on servers are asked meanwhile, each in its thread."""
        return asked_together(self.rewards, x, prompts)

    def combine(self, found: Mapping[str, Tensor]) -> Tensor:
        """The reward [B] from its parts' rewards. Raises RewardError where what is standardised was not measured."""
        return self._value(self.tree, found)

    def measure(self, found: Mapping[str, Tensor]) -> None:
        """Takes the statistics of its parts, and of what it standardises, from the base model's images: the parts'
        rewards [B] of them.

        Raises RewardError where what is standardised does not differ, so that there is no unit.
        """
        self.statistics = {self._keys[name]: moments(found[name]) for name in self.rewards}
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
        """Takes its statistics, mean and deviation, from those that were measured before."""
        keys = [*self._keys.values(), *(key for key, _ in self._standardised())]
        self.statistics = {key: (measured[key][0], measured[key][1]) for key in keys if key in measured}

    def cancel(self) -> None:
        """Ends the calls of parts on servers that are under way in another thread."""
        for reward in self.rewards.values():
            getattr(reward, "cancel", lambda: None)()

    def _identity(self) -> str:
        known = {part: str(reward.identity()) for part, reward in self.rewards.items() if is_remote(part)}  # type: ignore[attr-defined]
        return written(self.tree, lambda part: known.get(part, part))

    def _standardised(self) -> list[tuple[str, Standardise]]:
        return [(self._key(node), node) for node in walk(self.tree) if isinstance(node, Standardise)]

    def _key(self, node: Node) -> str:
        return written(node, lambda part: self._keys[part])

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
                f"the reward {self.__name__!r} has {key}, which is measured on the base model's images at the start "
                "of a run: outside of one, leave standardise out"
            )
        return self.statistics[key]


def asked_together(rewards: Mapping[str, Reward], x: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Rewards [B] of several functions by their names, each checked; those on servers are asked at once.

    The others are called one after the other in this thread, as rewards need not bear more. Raises RewardError.
    """
    elsewhere = [name for name, reward in rewards.items() if hasattr(reward, "cancel")]
    if not elsewhere or (len(elsewhere) == 1 and len(rewards) == 1):
        return {name: checked(reward, x, prompts) for name, reward in rewards.items()}
    with ThreadPoolExecutor(len(elsewhere)) as threads:
        waiting = {name: threads.submit(checked, rewards[name], x, prompts) for name in elsewhere}
        try:
            here = {name: checked(reward, x, prompts) for name, reward in rewards.items() if name not in waiting}
            for answer in as_completed(waiting.values()):
                answer.result()
        except BaseException:
            # Nobody needs the others' answers; a call that has not begun yet cannot be cut short.
            while under_way := [name for name, answer in waiting.items() if not answer.done()]:
                for name in under_way:
                    rewards[name].cancel()  # type: ignore[attr-defined]
                wait((waiting[name] for name in under_way), timeout=0.1)
            raise
        found = here | {name: answer.result() for name, answer in waiting.items()}
    return {name: found[name].to(x.device) for name in rewards}


def score_together(rewards: Mapping[str, Reward], x: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """As `asked_together`, float32 on the CPU, without gradient."""
    with torch.no_grad():
        return {name: values.float().cpu() for name, values in asked_together(rewards, x, prompts).items()}


def leaves(rewards: Mapping[str, Reward]) -> dict[str, Reward]:
    """What is to be asked for several rewards by name: the parts of those that are combinations, each once."""
    found: dict[str, Reward] = {}
    for name, reward in rewards.items():
        found |= reward.rewards if isinstance(reward, Combination) else {name: reward}
    return found


def total(name: str, reward: Reward, found: Mapping[str, Tensor], prompts: Sequence[str]) -> Tensor:
    """A reward [B] out of what its leaves answered. Raises RewardError where it is not finite, or not measured."""
    return put_together(reward, found, prompts) if isinstance(reward, Combination) else found[name]
