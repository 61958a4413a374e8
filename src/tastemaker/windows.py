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
