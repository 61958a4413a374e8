"""Windows: the stretch of the chain that carries learning signal in a round (design.md §3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Window(Protocol):
    """Which steps learn in a round."""

    def steps(self, candidates: Sequence[int], round: int) -> list[int]:
        """The learning steps out of `candidates` (indices, noise end first), contiguous, at least one."""
        ...


@dataclass(frozen=True)
class Whole:
    """Every step that has a likelihood."""

    def steps(self, candidates: Sequence[int], round: int) -> list[int]:
        return list(candidates)


@dataclass(frozen=True)
class First:
    """The first steps of the chain, a share of those that have a likelihood, which settle what a picture shows.

    The last steps add little noise, so their log-probabilities react most to the network (c/sigma is
    -5.4 at the step before last of 20, -0.85 at the first), while what they add hardly moves the reward: in the sum
    over steps they are mostly variance.
    """

    share: float

    def steps(self, candidates: Sequence[int], round: int) -> list[int]:
        # `round` is the parameter of the protocol here, hence no call of the built-in of that name.
        return list(candidates)[: max(1, int(self.share * len(candidates) + 0.5))]
