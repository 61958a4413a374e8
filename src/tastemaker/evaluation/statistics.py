"""Intervals and tests for evaluations and human comparisons: pure functions of arrays.

Letters in shapes: N observations (images or comparisons), R bootstrap resamples, M models.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components
from scipy.stats import norm, t

from tastemaker.errors import DataError

Array = NDArray[np.float64]
Over = Literal["prompts", "seeds", "both"]
Method = Literal["percentile", "bca"]


@dataclass(frozen=True)
class Interval:
    """An estimate with the two ends of its interval."""

    estimate: float
    low: float
    high: float


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """The score interval of a rate of n independent trials (Wilson 1927).

    Ties may count as half successes; n may be the number of independent trials for which dependent ones stand. Raises
    DataError where there are no trials, or more successes than trials.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise DataError(
            f"a rate of {successes:g} successes in {n:g} trials is not defined: expected 0 <= successes <= n, and n > 0"
        )
    return _score_interval(successes / n, n, _z(level))


def _score_interval(rate: float, n: float, z: float) -> Interval:
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return Interval(rate, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def bootstrap_mean(
    values: ArrayLike,
    prompts: Sequence[Hashable],
    *,
    over: Over = "prompts",
    method: Method = "percentile",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean of values [N] with a bootstrap interval; `prompts` [N] says to which prompt each image belongs.

    `over` is what another evaluation would draw anew. "prompts": prompts, each with all its images; this contains the
    variation of seeds. "seeds": images of the same prompts. "both": prompts, then images within each, which counts the
    variation of seeds twice and so is too wide where they vary much (Davison & Hinkley 1997, §3.8). With one prompt,
    its images are drawn. Percentiles are widened for few clusters (Hesterberg 2015, "expanded percentile"); "bca" also
    corrects bias and skewness (Efron 1987). Raises DataError for no values, or values that are not finite.
    """
    x, group = _checked(values, prompts)
    if group.max() == 0:
        over = "seeds"
    random = np.random.default_rng(seed)
    weights = _weights(group, over, resamples, random)
    means = weights @ x / weights.sum(axis=1)
    units = np.arange(len(x)) if over == "seeds" else group
    return _interval(x, units, means, method, level)


def rate_interval(values: ArrayLike, prompts: Sequence[Hashable]) -> Interval:
    """The share of ones among values [N]: the bootstrap interval over prompts.

    Where all values are alike, so that none can be drawn that differ, Wilson's of as many trials as there are prompts.
    Raises DataError for no values, or values that are not finite.
    """
    x, group = _checked(values, prompts)
    if np.ptp(x) > 0:
        return bootstrap_mean(x, prompts)
    count = int(group.max()) + 1
    found = wilson(float(x[0]) * count, count)
    return Interval(float(x[0]), found.low, found.high)


def bootstrap_difference(
    values: ArrayLike,
    others: ArrayLike,
    prompts: Sequence[Hashable],
    *,
    over: Over = "prompts",
    method: Method = "percentile",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean of values - others, both [N] of the same prompts and seeds, as in `bootstrap_mean`."""
    x, y = np.asarray(values, np.float64), np.asarray(others, np.float64)
    if x.shape != y.shape:
        raise DataError(f"paired differences need as many values on both sides, but there are {x.size} and {y.size}")
    return bootstrap_mean(x - y, prompts, over=over, method=method, level=level, resamples=resamples, seed=seed)


def clustered_win_rate(
    outcomes: ArrayLike, prompts: Sequence[Hashable], labelers: Sequence[Hashable], *, level: float = 0.95
) -> Interval:
    """The win rate of outcomes [N] (1 win, 0.5 tie, 0 loss) where answers of a prompt, and of a labeler, are alike.

    The variance is that of two-way clustering, V_prompts + V_labelers - V_both (Cameron, Gelbach & Miller 2011, §2.2),
    with Satterthwaite's degrees of freedom. The interval is Wilson's for as many independent answers as have this
    variance, so it stays within [0, 1]. With one labeler, prompts alone are clusters, and the reverse. Where all
    outcomes are the same, prompts count as independent trials. Three labelers who differ much are too few for it: 95 %
    intervals then contain the rate in 91 %. Raises DataError.
    """
    x, prompt = _checked(outcomes, prompts)
    if x.min() < 0 or x.max() > 1:
        raise DataError("outcomes are 1 for a win, 0.5 for a tie and 0 for a loss")
    rate = float(x.mean())
    variance, freedom = two_way_variance(x - rate, prompts, labelers)
    if variance == 0:
        return _score_interval(rate, int(prompt.max()) + 1, _z(level))
    return _score_interval(rate, rate * (1 - rate) / variance, float(t.ppf((1 + level) / 2, freedom)))


def two_way_variance(
    deviations: ArrayLike, prompts: Sequence[Hashable], labelers: Sequence[Hashable]
) -> tuple[float, float]:
    """The variance of a mean from its terms' deviations [N], and its degrees of freedom; see `clustered_win_rate`.

    A single prompt or labeler is no cluster; with one of both, the terms are independent. Raises DataError.
    """
    x, prompt = _checked(deviations, prompts)
    _, labeler = _checked(deviations, labelers)
    groups = [group for group in (prompt, labeler) if group.max() > 0] or [np.arange(len(x))]
    parts = [_cluster_variance(x, group) for group in groups]
    if len(parts) < 2:
        return parts[0]
    both = np.unique(np.stack(groups), axis=1, return_inverse=True)[1].ravel()
    shared = _cluster_variance(x, both)
    # The difference may come out too small, or below 0. Of floors, half of what independent answers have keeps coverage
    # nearest to the level where labelers do not differ.
    variance = max(parts[0][0] + parts[1][0] - shared[0], shared[0] / 2)
    spread = sum(v**2 / d for v, d in (*parts, shared))
    freedom = variance**2 / spread if spread else 0.0
    return variance, max(freedom, min(parts[0][1], parts[1][1]))


def _cluster_variance(deviations: Array, group: NDArray[np.int64]) -> tuple[float, float]:
    """The variance of a mean whose N deviations are sums of independent clusters, and its degrees of freedom."""
    sums = np.bincount(group, deviations)
    if len(sums) < 2:
        return 0.0, 0.0
    return len(sums) / (len(sums) - 1) * float((sums**2).sum()) / len(deviations) ** 2, len(sums) - 1.0


def bootstrap_statistic(
    statistic: Callable[[NDArray[np.int64]], ArrayLike],
    prompts: Sequence[Hashable],
    *,
    level: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> list[Interval]:
    """Bootstrap intervals of what is computed from a whole set of images, such as a distance to another set.

    `statistic` is given indices of images, some of them several times, and returns one or more numbers [K]. Prompts are
    drawn, each with all its images; with one prompt, its images. A set with repetitions has fewer different images, by
    which such numbers are biased, so that the resamples' mean differs from the estimate: intervals are the percentiles
    about that mean, moved to the estimate, and widened for few prompts as in `bootstrap_mean`.
    """
    _, group = _checked(np.zeros(len(prompts)), prompts)
    units = np.arange(len(group)) if group.max() == 0 else group
    members = [np.flatnonzero(units == unit) for unit in range(units.max() + 1)]
    random = np.random.default_rng(seed)
    estimate = np.atleast_1d(np.asarray(statistic(np.arange(len(group))), np.float64))
    drawn = np.empty((resamples, len(estimate)))
    for row in drawn:
        chosen = random.integers(len(members), size=len(members))
        row[:] = statistic(np.concatenate([members[unit] for unit in chosen]))
    z = np.array([-1, 1]) * _expanded(len(members), level)
    low, high = np.quantile(drawn - drawn.mean(axis=0), norm.cdf(z), axis=0)
    return [Interval(float(x), float(x + a), float(x + b)) for x, a, b in zip(estimate, low, high, strict=True)]


@dataclass(frozen=True)
class BradleyTerry:
    """Strengths of M models, log pi with mean 0, each with its Wald interval, and the tendency to tie."""

    strengths: tuple[Interval, ...]
    tie: float
    """Davidson's nu; 0 where there are no ties."""
    covariance: Array
    """[M,M] of the strengths."""

    def win_probability(self, i: int, j: int) -> float:
        """P(i beats j), a tie being no win."""
        a, b = self.strengths[i].estimate / 2, self.strengths[j].estimate / 2
        return float(1 / (1 + np.exp(2 * (b - a)) + self.tie * np.exp(b - a)))

    def difference(self, i: int, j: int, level: float = 0.95) -> Interval:
        """log(pi_i / pi_j) with its Wald interval."""
        estimate = self.strengths[i].estimate - self.strengths[j].estimate
        variance = self.covariance[i, i] + self.covariance[j, j] - 2 * self.covariance[i, j]
        half = _z(level) * float(np.sqrt(max(0.0, variance)))
        return Interval(estimate, estimate - half, estimate + half)


def bradley_terry(wins: ArrayLike, ties: ArrayLike | None = None, level: float = 0.95) -> BradleyTerry:
    """The maximum likelihood of Bradley & Terry 1952, with ties as in Davidson 1970.

    wins [M,M]: how often row beat column. ties [M,M]: symmetric, how often they tied. P(i beats j) is
    pi_i / (pi_i + pi_j + nu sqrt(pi_i pi_j)). Intervals are of independent comparisons. Raises DataError where no
    finite maximum exists: some models never lost to, nor tied with, the others.
    """
    w = np.asarray(wins, np.float64)
    d = np.zeros_like(w) if ties is None else np.asarray(ties, np.float64)
    if w.ndim != 2 or w.shape[0] != w.shape[1] or len(w) < 2 or d.shape != w.shape or (d != d.T).any():
        raise DataError("wins and ties must be square tables of two or more models, and ties symmetric")
    if (w < 0).any() or (d < 0).any() or not (np.isfinite(w).all() and np.isfinite(d).all()):
        raise DataError("wins and ties must be counts of zero or more")
    if connected_components(w + d > 0, connection="strong")[0] > 1:
        raise DataError("some models have won, or lost, all comparisons with the others, so strengths are unbounded")
    if d.any() and not w.any():
        raise DataError("all comparisons are ties, so the tendency to tie is unbounded")
    m, tied = len(w), bool(d.any())
    size = m + tied
    features, counts, size_of = [], [], []
    for i in range(m):
        for j in range(i):
            outcomes = np.zeros((3 if tied else 2, size))
            outcomes[0, i] = outcomes[1, j] = 1
            if tied:
                outcomes[2, [i, j, m]] = 0.5, 0.5, 1
            features.append(outcomes)
            counts.append([w[i, j], w[j, i], d[i, j]][: len(outcomes)])
            size_of.append(sum(counts[-1]))
    f, n, total = np.array(features), np.array(counts), np.array(size_of)

    def value(theta: Array) -> float:
        logits = f @ theta
        top = logits.max(axis=1, keepdims=True)
        return float((n * (logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True)))).sum())

    def slope(theta: Array) -> tuple[Array, Array]:
        logits = f @ theta
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        mean = np.einsum("ck,ckd->cd", p, f)
        gradient = np.einsum("ck,ckd->d", n, f) - total @ mean
        second = np.einsum("c,ck,ckd,cke->de", total, p, f, f) - np.einsum("c,cd,ce->de", total, mean, mean)
        return gradient, second

    theta = np.zeros(size)
    for _ in range(200):  # Newton's method on a concave function; a step is halved where it would go down
        gradient, second = slope(theta)
        if np.abs(gradient).max() < 1e-10 * max(1.0, total.sum()):
            break
        step = np.linalg.pinv(second, hermitian=True) @ gradient
        while value(theta + step) < value(theta) and np.abs(step).max() > 1e-12:
            step = step / 2
        theta = theta + step
    theta[:m] -= theta[:m].mean()
    covariance: Array = np.linalg.pinv(slope(theta)[1], hermitian=True)[:m, :m].astype(np.float64)
    half = _z(level) * np.sqrt(np.diag(covariance))
    strengths = tuple(Interval(float(b), float(b - h), float(b + h)) for b, h in zip(theta, half, strict=False))
    return BradleyTerry(strengths, float(np.exp(theta[m])) if tied else 0.0, covariance)


@dataclass(frozen=True)
class Sequential:
    """A win rate that may be looked at after every answer."""

    interval: Interval
    """Contains the true rate at all times at once with the level's probability."""
    decided_at: int | None
    """The number of answers after which 0.5 was first outside; None where it is still inside."""


def sequential_win_rate(outcomes: ArrayLike, level: float = 0.95, points: int = 1001) -> Sequential:
    """The win rate of outcomes [N] in [0,1], in their order, by the hedged-capital confidence sequence.

    A study may stop at `decided_at`, or at any time for any reason, without raising the error rate 1 - level. Each
    outcome must have the same mean given those before: one answer for each independently drawn prompt. Source:
    Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting", Theorem 3, with the
    predictable plug-in bets and c = 1/2. Raises DataError for outcomes outside [0,1] or none.
    """
    x, _ = _checked(outcomes, range(np.size(np.asarray(outcomes))))
    if x.min() < 0 or x.max() > 1:
        raise DataError("outcomes are 1 for a win, 0.5 for a tie and 0 for a loss")
    grid = np.linspace(0, 1, points)
    left = hedged_capital(x, grid, 1 - level) < np.log(1 / (1 - level))
    inside = np.logical_and.accumulate(left, axis=0)  # [N,points]: what was refused once stays refused
    kept = grid[inside[-1]]
    half = 0.5 / (points - 1)
    outside = np.flatnonzero(hedged_capital(x, np.array([0.5]), 1 - level)[:, 0] >= np.log(1 / (1 - level)))
    low, high = (kept.min() - half, kept.max() + half) if kept.size else (x.mean(), x.mean())
    interval = Interval(float(x.mean()), max(0.0, float(low)), min(1.0, float(high)))
    return Sequential(interval, int(outside[0]) + 1 if outside.size else None)


def hedged_capital(x: Array, means: Array, alpha: float) -> Array:
    """[N,K] log capital of one who bets against each of the means [K] as the outcomes x [N] come in."""
    count = np.arange(1, len(x) + 1)
    running = (0.5 + np.cumsum(x)) / (count + 1)
    variance = (0.25 + np.cumsum((x - running) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    bet = np.sqrt(2 * np.log(2 / alpha) / (before * count * np.log1p(count)))[:, None]
    with np.errstate(divide="ignore"):
        up, down = np.minimum(bet, 0.5 / means), np.minimum(bet, 0.5 / (1 - means))
    edge = x[:, None] - means
    long = np.cumsum(np.log1p(up * edge), axis=0)
    short = np.cumsum(np.log1p(-down * edge), axis=0)
    return np.maximum(long, short) - np.log(2)


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise DataError(f"the level of an interval is {level:g}, expected a number between 0 and 1, such as 0.95")
    return float(norm.ppf((1 + level) / 2))


def _checked(values: ArrayLike, groups: Sequence[Hashable]) -> tuple[Array, NDArray[np.int64]]:
    """Values [N] and the numbers [N] of their groups, by first appearance."""
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not x.size or len(groups) != x.size:
        raise DataError(f"expected one or more values with a group each, but there are {x.size} and {len(groups)}")
    if not np.isfinite(x).all():
        raise DataError("values must be finite numbers")
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    return x, np.array([number[group] for group in groups])


def _counts(size: int, resamples: int, random: np.random.Generator) -> Array:
    """[R,size]: how often each of `size` units is drawn."""
    return random.multinomial(size, np.full(size, 1 / size), size=resamples).astype(np.float64)


def _weights(group: NDArray[np.int64], over: Over, resamples: int, random: np.random.Generator) -> Array:
    """[R,N]: how often each observation counts in each resample."""
    weights = np.ones((resamples, len(group)))
    if over != "seeds":
        weights = _counts(group.max() + 1, resamples, random)[:, group]
    if over != "prompts":
        for number in range(group.max() + 1):
            own = np.flatnonzero(group == number)
            weights[:, own] *= _counts(len(own), resamples, random)
    return weights


def _expanded(units: int, level: float) -> float:
    """The normal quantile that gives a percentile interval of few units the width of Student's (Hesterberg 2015)."""
    if units < 2:
        return _z(level)
    return float(np.sqrt(units / (units - 1)) * t.ppf((1 + level) / 2, units - 1))


def _interval(x: Array, units: NDArray[np.int64], means: Array, method: Method, level: float) -> Interval:
    estimate, count = float(x.mean()), int(units.max()) + 1
    z = np.array([-1, 1]) * _expanded(count, level)
    if method == "bca" and means.std() > 0 and count > 1:
        sums, sizes = np.bincount(units, x), np.bincount(units)
        without = (x.sum() - sums) / (len(x) - sizes)  # the jackknife over units
        from_mean = without.mean() - without
        scale = float((from_mean**2).sum()) ** 1.5
        skew = float((from_mean**3).sum()) / (6 * scale) if scale else 0.0
        below = (np.count_nonzero(means < estimate) + np.count_nonzero(means == estimate) / 2) / len(means)
        bias = norm.ppf(np.clip(below, 1 / len(means), 1 - 1 / len(means)))
        z = bias + (bias + z) / (1 - skew * (bias + z))
    low, high = np.quantile(means, norm.cdf(z))
    return Interval(estimate, float(low), float(high))
