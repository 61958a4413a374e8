"""Bradley-Terry strengths of models whose answers depend on each other by prompt and by labeler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from tastemaker.errors import DataError
from tastemaker.evaluation.statistics import BradleyTerry, Interval, bradley_terry, two_way_variance
from tastemaker.human_evaluation.outcomes import Outcome, labeler_clusters


@dataclass(frozen=True)
class Strengths:
    """Strengths of M models, log pi with mean 0."""

    models: tuple[Interval, ...]
    """Empty where there is no finite maximum of the likelihood."""
    tie: float
    """Davidson's nu; 0 where there are no ties."""
    reason: str = ""
    """Why there are none."""


def strengths(found: Sequence[Outcome], models: int, level: float) -> Strengths:
    """The strengths that preferences say (`evaluation.statistics.bradley_terry`).

    Their intervals are of the sandwich variance with prompts and labelers as clusters (Cameron, Gelbach & Miller 2011,
    section 2.2), where the likelihood's own would take all answers for independent. A choice of the best of several
    images is a win over each other one, which is consistent for Plackett and Luce's model (Azari Soufiani et al. 2013).
    """
    wins, ties = np.zeros((models, models)), np.zeros((models, models))
    for one in found:
        if one.value == 0.5:
            ties[one.first, one.second] += 1
            ties[one.second, one.first] += 1
        else:
            winner, loser = (one.first, one.second) if one.value == 1 else (one.second, one.first)
            wins[winner, loser] += 1
    try:
        fit = bradley_terry(wins, ties, level)
    except DataError as error:
        return Strengths((), 0.0, str(error))
    influence = _influence(found, fit, models)
    prompts, labelers = [one.prompt for one in found], labeler_clusters([one.labeler for one in found])
    intervals = []
    for model, strength in enumerate(fit.strengths):
        # The estimate's deviation is the sum of its terms' influences, and that of a mean of N terms N times as large.
        variance, freedom = two_way_variance(influence[:, model] * len(found), prompts, labelers)
        half = float(t.ppf((1 + level) / 2, freedom)) * variance**0.5 if freedom else float("inf")
        intervals.append(Interval(strength.estimate, strength.estimate - half, strength.estimate + half))
    return Strengths(tuple(intervals), fit.tie)


def _influence(found: Sequence[Outcome], fit: BradleyTerry, models: int) -> NDArray[np.float64]:
    """[N,M]: by how much each answer moves each strength, the inverse of the information times the answer's score."""
    tied = fit.tie > 0
    theta = np.array([one.estimate for one in fit.strengths] + ([np.log(fit.tie)] if tied else []))
    scores, information = [], np.zeros((len(theta), len(theta)))
    for one in found:
        features = np.zeros((3 if tied else 2, len(theta)))
        features[0, one.first] = features[1, one.second] = 1
        if tied:
            features[2, [one.first, one.second, models]] = 0.5, 0.5, 1
        weights = np.exp(features @ theta - (features @ theta).max())
        chance = weights / weights.sum()
        mean = chance @ features
        scores.append(features[{1.0: 0, 0.0: 1, 0.5: 2}[one.value]] - mean)
        information += np.einsum("k,kd,ke->de", chance, features, features) - np.outer(mean, mean)
    inverse = np.linalg.pinv(information, hermitian=True)
    return np.asarray(np.array(scores) @ inverse, np.float64)[:, :models]
