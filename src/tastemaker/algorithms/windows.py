"""Windows: the stretch of the chain that carries learning signal in a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

from annotated_types import Ge

from tastemaker.constraints import check_constraints

_PLACE = 2**41 + 2
"""Counter of the draws of `Random`, apart from a round's other decisions."""


class Window(Protocol):
    """Which steps learn in a round."""

    def steps(self, candidates: Sequence[int], round: int, seed: int = 0) -> list[int]:
        """The learning steps out of `candidates` (indices, noise end first), contiguous, at least one.

        `seed` is the run's, for windows that are drawn at random.
        """
        ...


@dataclass(frozen=True)
class Whole:
    """Every step that has a likelihood."""

    name: ClassVar[str] = "whole"

    def steps(self, candidates: Sequence[int], round: int, seed: int = 0) -> list[int]:
        return list(candidates)


@dataclass(frozen=True)
class First:
    """The first steps of the chain, a share of those that have a likelihood, which settle what an image shows.

    The last steps add little noise, so their log-probabilities react most to the network (c/sigma is
    -5.4 at the step before last of 20, -0.85 at the first), while what they add hardly moves the reward: in the sum
    over steps they are mostly variance.
    """

    share: float

    def steps(self, candidates: Sequence[int], round: int, seed: int = 0) -> list[int]:
        # `round` is the parameter of the protocol here, hence no call of the built-in of that name.
        return list(candidates)[: max(1, int(self.share * len(candidates) + 0.5))]


@dataclass(frozen=True)
class Backward:
    """The last steps of the chain, more of them as the rounds go on (B2-DiffuRL's backward progressive training).

    Round n of N, from 0, trains the last `initial + floor(n (R - initial + 1) / N)` of R steps: the formula of the
    public code (run_process.sh).
    """

    name: ClassVar[str] = "backward"

    initial: Annotated[int, Ge(1)] = 14
    """Steps trained in the first round."""
    rounds: Annotated[int, Ge(1)] = 100
    """Rounds over which the window grows to the whole chain."""

    def __post_init__(self) -> None:
        check_constraints(self, "window.")

    def steps(self, candidates: Sequence[int], round: int, seed: int = 0) -> list[int]:
        whole = len(candidates)
        grown = self.initial + (round - 1) * (whole - self.initial + 1) // self.rounds
        return list(candidates)[-min(whole, max(grown, min(self.initial, whole))) :]


@dataclass(frozen=True)
class Sliding:
    """A few steps, which move from the noise to the image as the rounds go on, and then begin again (MixGRPO)."""

    name: ClassVar[str] = "sliding"

    size: Annotated[int, Ge(1)] = 4
    """Steps trained in a round."""
    every: Annotated[int, Ge(1)] = 25
    """Rounds until the window moves by `stride`."""
    stride: Annotated[int, Ge(1)] = 1
    """Steps by which it moves."""

    def __post_init__(self) -> None:
        check_constraints(self, "window.")

    def steps(self, candidates: Sequence[int], round: int, seed: int = 0) -> list[int]:
        last = max(0, len(candidates) - self.size)
        indices = [*range(0, last, self.stride), last]
        start = indices[(round - 1) // self.every % len(indices)]
        return list(candidates)[start : start + self.size]


@dataclass(frozen=True)
class Random:
    """A few steps, at a place that each round draws anew, all places being as likely (Flow-GRPO-Fast).

    The place is a function of (seed, round). `optimizer.first_share` bounds the steps among which it is drawn.
    """

    name: ClassVar[str] = "random"

    size: Annotated[int, Ge(1)] = 2
    """Steps trained in a round."""

    def __post_init__(self) -> None:
        check_constraints(self, "window.")

    def steps(self, candidates: Sequence[int], round: int, seed: int = 0) -> list[int]:
        from tastemaker import noise

        last = max(0, len(candidates) - self.size)
        start = int(noise.choices(seed, round, _PLACE).integers(last + 1))
        return list(candidates)[start : start + self.size]


@dataclass(frozen=True)
class Both:
    """The steps of one window, out of which a second one chooses."""

    first: Window
    second: Window

    def steps(self, candidates: Sequence[int], round: int, seed: int = 0) -> list[int]:
        return self.second.steps(self.first.steps(candidates, round, seed), round, seed)
