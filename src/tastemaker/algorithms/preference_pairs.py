"""Pairs of images out of groups, and rows of both sides in one batch."""

from __future__ import annotations

from dataclasses import fields
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from tastemaker.algorithms.selection import members

if TYPE_CHECKING:
    from tastemaker.types import Noised, Rollout, Transitions

T = TypeVar("T", "Transitions", "Noised")


def pairs(rollout: Rollout, kind: Literal["all", "best-worst"]) -> tuple[list[int], list[int]]:
    """Places of the preferred and of the other images of P pairs, by reward, among the selected ones of each group.

    Images whose rewards do not `advantage.differ` are no pair. Raises ValueError for a rollout without rewards or
    groups.
    """
    from tastemaker.spread import differ
    from tastemaker.types import selected_images

    if rollout.reward is None or rollout.group is None:
        raise ValueError("pairs need rewards and groups")
    reward, group = rollout.reward.tolist(), rollout.group.tolist()
    chosen = selected_images(rollout).tolist()
    better, worse = [], []
    for places in members([group[place] for place in chosen]):
        ordered = sorted((chosen[place] for place in places), key=lambda place: -reward[place])
        for a, b in combinations(ordered, 2) if kind == "all" else [(ordered[0], ordered[-1])]:
            if differ(rollout.reward[[a, b]]):
                better.append(a)
                worse.append(b)
    return better, worse


def joined(one: T, two: T) -> T:
    """Rows [2N] of both."""
    values = {field.name: (getattr(one, field.name), getattr(two, field.name)) for field in fields(one)}
    both: dict[str, Any] = {name: None if a is None else torch.cat([a, b]) for name, (a, b) in values.items()}
    return type(one)(**both)
