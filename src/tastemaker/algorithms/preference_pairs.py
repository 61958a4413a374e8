"""Pairs of images out of groups."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Literal

from tastemaker.algorithms.selection import members

if TYPE_CHECKING:
    from tastemaker.types import Rollout


def pairs(rollout: Rollout, kind: Literal["all", "best-worst"]) -> tuple[list[int], list[int]]:
    """Indices of the preferred and of the other images of P pairs, by reward, among the selected ones of each group.

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
    for indices in members([group[image] for image in chosen]):
        ordered = sorted((chosen[index] for index in indices), key=lambda image: -reward[image])
        for a, b in combinations(ordered, 2) if kind == "all" else [(ordered[0], ordered[-1])]:
            if differ(rollout.reward[[a, b]]):
                better.append(a)
                worse.append(b)
    return better, worse
