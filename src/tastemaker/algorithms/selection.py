"""Selection: which of a round's images are learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol

from annotated_types import Ge

from tastemaker.constraints import check_constraints

if TYPE_CHECKING:
    from torch import Tensor


def members(group: Sequence[int]) -> list[list[int]]:
    """Places of the images of each group, groups by first appearance."""
    found: dict[int, list[int]] = {}
    for index, number in enumerate(group):
        found.setdefault(number, []).append(index)
    return list(found.values())


class Selection(Protocol):
    """Which of a round's images are learned from."""

    def chosen(self, advantage: Tensor, group: Sequence[int]) -> Tensor:
        """[B] bool, from advantages [B] and the numbers of groups that are compared with each other."""
        ...


@dataclass(frozen=True)
class All:
    """Every image."""

    name: ClassVar[str] = "all"

    def chosen(self, advantage: Tensor, group: Sequence[int]) -> Tensor:
        return advantage.new_ones(advantage.shape).bool()


@dataclass(frozen=True)
class NonZero:
    """Images whose advantage or weight is not exactly 0: groups without spread (GRPO) and rejected samples teach
    nothing, and cost as much as the others."""

    name: ClassVar[str] = "nonzero"

    def chosen(self, advantage: Tensor, group: Sequence[int]) -> Tensor:
        return advantage != 0


@dataclass(frozen=True)
class BestWorst:
    """Of each group the best image, if its advantage reaches the threshold, and the worst, if it is below minus
    the threshold: two, one or none (B2-DiffuRL §3.3, with the two tests independent, as in its code)."""

    name: ClassVar[str] = "best-worst"

    threshold: Annotated[float, Ge(0)] = 0.5
    """In standard deviations of the normalised reward (Table 6)."""

    def __post_init__(self) -> None:
        check_constraints(self, "selection.")

    def chosen(self, advantage: Tensor, group: Sequence[int]) -> Tensor:
        keep = ~advantage.isfinite()  # for the update's check to see
        values = advantage.tolist()
        for indices in members(group):
            best, worst = max(indices, key=values.__getitem__), min(indices, key=values.__getitem__)
            if values[best] >= self.threshold:
                keep[best] = True
            if values[worst] < -self.threshold:
                keep[worst] = True
        return keep
