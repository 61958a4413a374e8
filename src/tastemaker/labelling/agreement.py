"""How far labelers agree with one another, with themselves and with known answers: pure functions of numbers.

Krippendorff's alpha is in none of SciPy and scikit-learn, which have Cohen's kappa for two labelers without gaps only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Metric = Literal["nominal", "ordinal", "interval"]
METRICS: tuple[Metric, ...] = ("nominal", "ordinal", "interval")


@dataclass(frozen=True)
class Share:
    """A share of cases, with its 95 % Wilson interval."""

    cases: int
    of: int
    value: float | None
    """cases / of, in [0, 1]; None where `of` is 0."""
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Alpha:
    """Krippendorff's alpha: 1 is full agreement, 0 what chance gives, and less is disagreement by system."""

    value: float
    low: float
    """Lower end of the bootstrap interval."""
    high: float
    units: int
    """What at least two labelers have judged."""
    tasks: int
    """The tasks that these units belong to; the bootstrap draws whole tasks."""


def share(cases: int, of: int, confidence: float = 0.95) -> Share:
    """A share with its score interval (Wilson, "Probable Inference, the Law of Succession, and Statistical
    Inference", 1927), which stays within [0, 1] and is right for few cases."""
    if of == 0:
        return Share(cases, of, None, None, None)
    from scipy.stats import binomtest

    interval = binomtest(cases, of).proportion_ci(confidence, method="wilson")
    return Share(cases, of, cases / of, float(interval.low), float(interval.high))


def krippendorff(
    units: Mapping[Any, Sequence[Any]],
    clusters: Mapping[Any, Any],
    values: Sequence[Any],
    metric: Metric = "nominal",
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Alpha | None:
    """Krippendorff's alpha (Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, part C), with the
    percentile interval of a bootstrap over clusters.

    `units` has for each thing that was judged the answers of its labelers, as many as there are; `clusters` says which
    task a unit belongs to, since the pairs of one task are not independent. `values` lists the possible answers, in
    their order for the ordinal metric; for the interval metric they are numbers. None where no unit has two answers,
    or all answers are the same, for which alpha is not defined. Resamples of the latter kind are left out.
    """
    place = {value: index for index, value in enumerate(values)}
    kept = [name for name, answers in units.items() if len(answers) >= 2]
    tasks = list(dict.fromkeys(clusters[name] for name in kept))
    number = {task: index for index, task in enumerate(tasks)}
    # [T,C,C]: how often values meet within the units of each task.
    coincidences = np.zeros((len(tasks), len(values), len(values)))
    for name in kept:
        counts = np.bincount([place[answer] for answer in units[name]], minlength=len(values)).astype(float)
        met = np.outer(counts, counts) - np.diag(counts)
        coincidences[number[clusters[name]]] += met / (counts.sum() - 1)
    numbers = np.asarray(values, dtype=float) if metric == "interval" else None
    found = _alphas(coincidences.sum(axis=0)[None], metric, numbers)[0]
    if not np.isfinite(found):
        return None
    draws = np.random.default_rng(seed).multinomial(len(tasks), np.full(len(tasks), 1 / len(tasks)), size=resamples)
    resampled = _alphas(np.tensordot(draws.astype(float), coincidences, axes=1), metric, numbers)
    resampled = resampled[np.isfinite(resampled)]
    edge = (1 - confidence) / 2
    low, high = np.quantile(resampled, [edge, 1 - edge]) if len(resampled) else (found, found)
    return Alpha(float(found), float(low), float(high), len(kept), len(tasks))


def _alphas(coincidences: np.ndarray, metric: Metric, numbers: np.ndarray | None) -> np.ndarray:
    """[B] alphas of [B,C,C] coincidence matrices; NaN where all values are the same."""
    totals = coincidences.sum(axis=2)  # [B,C]
    count = totals.sum(axis=1)
    differences = _squared_differences(totals, metric, numbers)
    expected = totals[:, :, None] * totals[:, None, :]
    observed_disagreement = (coincidences * differences).sum(axis=(1, 2))
    expected_disagreement = (expected * differences).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - (count - 1) * observed_disagreement / expected_disagreement


def _squared_differences(totals: np.ndarray, metric: Metric, numbers: np.ndarray | None) -> np.ndarray:
    """[B,C,C]: how far two values are apart."""
    size = totals.shape[1]
    if metric == "interval":
        assert numbers is not None
        return np.broadcast_to((numbers[:, None] - numbers[None, :]) ** 2, (len(totals), size, size))
    if metric == "nominal":
        return np.broadcast_to(1.0 - np.eye(size), (len(totals), size, size))
    # Ordinal: the answers from one value to the other, half of those of the two themselves.
    sums = np.cumsum(totals, axis=1)
    middle = sums - totals / 2
    return (middle[:, :, None] - middle[:, None, :]) ** 2
