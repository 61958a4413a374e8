"""Settings of a run's evaluations, and of what follows from them: warnings of over-optimisation, and an early end.

Free of torch, since the command line reads them; in a small module of their own, since the help of each dataclass costs
a pass over its whole module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Lt


@dataclass(frozen=True)
class Evaluation:
    """The same prompts and seeds, sampled again and again while training goes on."""

    every: Annotated[int, Gt(0)] = 5
    """Rounds between evaluations; the first and the last model are always evaluated."""
    prompts: Annotated[int, Gt(0)] = 8
    """Number of prompts, taken evenly from the run's list."""
    per_prompt: Annotated[int, Gt(0)] = 4
    """Images of each."""
    unseen: str | None = None
    """A second list, of prompts that are not trained on: as many of it are evaluated beside them, with their own
    figures (`eval/unseen/...`)."""
    hold_out: bool = False
    """Train on the prompts that `unseen` does not have, where both lists share some; otherwise that is an error."""
    rewards: tuple[str, ...] = ()
    """Rewards that score the evaluations' images and are never trained on (`eval/rewards/NAME`)."""
    kl_images: Annotated[int, Ge(0)] = 8
    """Images of each evaluation on which the divergence from the base model is measured (`eval/kl`), at most all; 0
    measures none. Each is sampled once more, and its steps are asked of the model and of the base model: three times
    the passes of an ordinary image of the evaluation."""


@dataclass(frozen=True)
class OverOptimisation:
    """What evaluations do about a trained reward that rises while other measures fall
    (docs/guides/over-optimisation.md)."""

    tolerance: Annotated[float, Gt(0), Lt(1)] = 0.1
    """How much of a measure may be lost before there is a warning: a share of judge/correct, diversity and the other
    shares, and of twice the standard deviation of the base model's images for rewards."""
    kl_limit: Annotated[float, Gt(0)] | None = None
    """Divergence from the base model [nats] above which there is a warning too; it always grows in training."""
    keep_best: str | None = None
    """Keep the best model in the run's folder `best`: of the evaluations at which nothing had fallen, the one with the
    highest value of this metric of theirs, such as reward/mean, rewards/NAME or unseen/reward/mean."""


@dataclass(frozen=True)
class EarlyStop:
    """Ends a run before its last round, when a metric of the evaluations has become worse."""

    metric: str | None = None
    """End the run when this metric of the evaluations falls: judge/correct, diversity, or reward/mean."""
    min_delta: Annotated[float, Ge(0)] = 0.1
    """How far below its highest value so far the metric may fall. The run keeps the last model above that."""
    over_optimisation: bool = False
    """End the run at a warning of over-optimisation. The run keeps the last model at whose evaluation nothing had
    fallen."""
