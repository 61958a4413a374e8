"""How well a reward model predicts comparisons: accuracy with an interval, and calibration."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from tastemaker.evaluation.statistics import wilson


@dataclass(frozen=True)
class Predictions:
    """P pairs whose label is known, with a prediction of each."""

    probability: np.ndarray
    """[P] predicted probability that the first image is better: sigmoid of the difference of rewards."""
    better: np.ndarray
    """[P] labels in [0, 1]."""
    cluster: tuple[Hashable, ...]
    """P: which pairs depend on each other, such as those of one prompt."""

    def decided(self) -> Predictions:
        """Without ties, and without pairs on which as many said one as the other."""
        kept = self.better != 0.5
        return Predictions(
            self.probability[kept], self.better[kept], tuple(c for c, k in zip(self.cluster, kept, strict=True) if k)
        )


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    """Pairs that were counted."""


def accuracy(found: Predictions) -> Share | None:
    """The share of pairs, ties left out, whose better image has the higher reward; None where none is decided.

    An equal reward counts half. The interval is Wilson's with the effective number of pairs: how much the share varies
    between clusters says for how many independent pairs they stand (Dean and Pagano 2015; the design effect of Kish).
    """
    pairs = found.decided()
    if not len(pairs.better):
        return None
    right = np.where(pairs.probability == 0.5, 0.5, (pairs.probability > 0.5) == (pairs.better > 0.5))
    sums: dict[Hashable, list[float]] = {}
    for cluster, value in zip(pairs.cluster, right, strict=True):
        sums.setdefault(cluster, []).append(float(value))
    value, count = float(right.mean()), len(right)
    independent = effective_count(list(sums.values()))
    interval = wilson(value * independent, independent)
    return Share(value, interval.low, interval.high, count)


def effective_count(clusters: Sequence[Sequence[float]]) -> float:
    """For how many independent values those of clusters stand: p (1 - p) / var, at most as many as there are.

    var = G / (G - 1) sum_g (s_g - p n_g)^2 / n^2 with the sum s_g and the number n_g of values of each of G clusters.
    Where all values are the same, G; of one cluster, 1.
    """
    count, total = sum(map(len, clusters)), sum(map(sum, clusters))
    share, groups = total / count, len(clusters)
    if groups == 1:
        return 1.0
    between = sum((sum(values) - share * len(values)) ** 2 for values in clusters)
    variance = groups / (groups - 1) * between / count**2
    if share in (0, 1) or variance == 0:
        return float(groups if share in (0, 1) else count)
    return min(float(count), share * (1 - share) / variance)


@dataclass(frozen=True)
class Bin:
    """Pairs whose predicted probability of the better-rated image is alike."""

    confidence: float
    """Their mean predicted probability, in [0.5, 1]."""
    right: float
    """The share of them in which that image is the better one."""
    count: int


def calibration(found: Predictions, bins: int = 10) -> tuple[Bin, ...]:
    """Bins of equal width over [0.5, 1] of the probability of the image with the higher reward; empty ones left out.

    Soft labels count as what they are: a pair with the label 0.8 is right to 0.8.
    """
    confidence = np.maximum(found.probability, 1 - found.probability)
    right = np.where(found.probability >= 0.5, found.better, 1 - found.better)
    index = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    return tuple(
        Bin(float(confidence[index == i].mean()), float(right[index == i].mean()), int((index == i).sum()))
        for i in range(bins)
        if (index == i).any()
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: the mean distance of confidence and share of right ones, over the pairs."""
    count = sum(one.count for one in bins)
    return sum(one.count * abs(one.confidence - one.right) for one in bins) / count
