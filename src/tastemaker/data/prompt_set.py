"""A list of prompts with weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

GOLDEN = (1 + math.sqrt(5)) / 2


@dataclass(frozen=True)
class PromptSet:
    """Prompts and how often each is drawn, relative to the others."""

    prompts: tuple[str, ...]
    weights: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def probabilities(self) -> list[float]:
        total = math.fsum(self.weights)
        return [weight / total for weight in self.weights]

    def spread(self, count: int) -> list[int]:
        """Indices of `count` prompts from all over the list, in its order; all of them when it is that short.

        Lists from templates repeat with a period, and even distances would take the same word of a template each time.
        So these are steps of about n/golden ratio around the list, coprime to its length: every period that divides
        the length is gone through evenly, and no prompt comes twice before all have come.
        """
        n = len(self)
        if count >= n:
            return list(range(n))
        step = min((s for s in range(1, n + 1) if math.gcd(s, n) == 1), key=lambda s: abs(s - n / GOLDEN))
        return sorted(step * index % n for index in range(count))
