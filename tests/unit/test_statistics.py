"""Intervals against numbers by hand, choix and closed forms; coverage by simulation."""

from collections.abc import Callable

import choix
import numpy as np
import pytest

from tastemaker.errors import DataError
from tastemaker.evaluation.statistics import (
    Interval,
    bootstrap_difference,
    bootstrap_mean,
    bradley_terry,
    clustered_win_rate,
    hedged_capital,
    sequential_win_rate,
    wilson,
)


def test_wilson_by_hand():
    """8 of 10, z = 1.959964: centre (.8 + 3.84146/20)/1.384146 = .716740, half 1.959964/1.384146
    sqrt(.016 + 3.84146/400) = .226578."""
    found = wilson(8, 10)
    assert (found.low, found.high) == pytest.approx((0.490162, 0.943318), abs=2e-6)
    assert wilson(0, 10).low == 0
    # 0 of 10: the upper end is z^2 / (n + z^2) = 3.84146 / 13.84146.
    assert wilson(0, 10).high == pytest.approx(0.277533, abs=1e-6)
    assert wilson(8, 10, level=0.5).high < found.high


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_wilson_refuses(successes: float, n: int):
    with pytest.raises(DataError, match="not defined"):
        wilson(successes, n)


def test_two_prompts_are_two_observations():
    """Images of a prompt that are alike add nothing: means are 0, 1/2 and 1 with 1/4, 1/2 and 1/4."""
    values, prompts = [0.0] * 50 + [1.0] * 50, ["a"] * 50 + ["b"] * 50
    assert bootstrap_mean(values, prompts) == Interval(0.5, 0.0, 1.0)
    fixed = bootstrap_mean(values, prompts, over="seeds")
    assert fixed == Interval(0.5, 0.5, 0.5)


def test_a_single_prompt_draws_its_seeds():
    x = np.random.default_rng(0).normal(size=200)
    found = bootstrap_mean(x, ["a"] * 200)
    half = 1.96 * x.std() / 200**0.5
    assert (found.low, found.high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.02)


def test_both_is_wider_than_prompts_where_seeds_vary():
    x = np.random.default_rng(0).normal(size=200)
    prompts = np.repeat(np.arange(50), 4).tolist()
    width = [(found := bootstrap_mean(x, prompts, over=over)).high - found.low for over in ("prompts", "both")]
    assert width[1] > 1.15 * width[0]


def test_paired_differences_lose_what_prompts_share():
    random = np.random.default_rng(0)
    shared = np.repeat(random.normal(0, 10, 40), 2)
    prompts = np.repeat(np.arange(40), 2).tolist()
    found = bootstrap_difference(shared + 1 + random.normal(0, 0.1, 80), shared, prompts)
    assert found.low < 1 < found.high
    assert found.high - found.low < 0.1
    with pytest.raises(DataError, match="as many values"):
        bootstrap_difference([1.0, 2.0], [1.0], ["a", "b"])


def test_percentile_against_scipy():
    """scipy's percentile interval of 400 independent values, where the widening is small."""
    from scipy.stats import bootstrap

    x = np.random.default_rng(3).exponential(size=400)
    for method in ("percentile", "bca"):
        mine = bootstrap_mean(x, list(range(400)), method=method, resamples=8000)
        theirs = bootstrap((x,), np.mean, method=method, n_resamples=8000, rng=1).confidence_interval
        assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_level_and_seed_act():
    x = np.random.default_rng(0).normal(size=60)
    units = list(range(60))
    narrow, wide = bootstrap_mean(x, units, level=0.5), bootstrap_mean(x, units, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert bootstrap_mean(x, units, seed=1) != bootstrap_mean(x, units, seed=2)
    assert bootstrap_mean(x, units, seed=1) == bootstrap_mean(x, units, seed=1)
    with pytest.raises(DataError, match="level"):
        wilson(1, 2, level=95)


@pytest.mark.parametrize(("values", "prompts"), [([], []), ([1.0], ["a", "b"]), ([float("nan")], ["a"])])
def test_bootstrap_refuses(values: list[float], prompts: list[str]):
    with pytest.raises(DataError):
        bootstrap_mean(values, prompts)


def test_bradley_terry_without_ties_against_choix():
    random, strengths = np.random.default_rng(0), np.array([0.0, 0.5, -0.7, 1.2])
    wins = np.zeros((4, 4))
    pairs = []
    for i in range(4):
        for j in range(i):
            for _ in range(60):
                first = random.random() < 1 / (1 + np.exp(strengths[j] - strengths[i]))
                winner, loser = (i, j) if first else (j, i)
                wins[winner, loser] += 1
                pairs.append((winner, loser))
    expected = choix.opt_pairwise(4, pairs, tol=1e-12)
    found = bradley_terry(wins)
    assert [one.estimate for one in found.strengths] == pytest.approx(expected - expected.mean(), abs=1e-5)
    assert found.tie == 0
    p = found.win_probability(3, 2)
    assert p == pytest.approx(1 / (1 + np.exp(expected[2] - expected[3])), abs=1e-5)


def test_davidson_of_two_models_by_hand():
    """12 wins, 3 losses, 6 ties fit exactly: pi_1/pi_2 = 12/3 = 4, nu = 6/sqrt(12 3) = 1, P(win) = 12/21.

    The variance of log(12/3) in a multinomial is 1/12 + 1/3 = 5/12.
    """
    found = bradley_terry([[0, 12], [3, 0]], [[0, 6], [6, 0]])
    difference = found.difference(0, 1)
    assert difference.estimate == pytest.approx(np.log(4))
    assert found.tie == pytest.approx(1)
    assert found.win_probability(0, 1) == pytest.approx(12 / 21)
    assert difference.high - difference.estimate == pytest.approx(1.959964 * (5 / 12) ** 0.5, rel=1e-6)


def test_bradley_terry_refuses_what_has_no_maximum():
    with pytest.raises(DataError, match="unbounded"):
        bradley_terry([[0, 3], [0, 0]])
    with pytest.raises(DataError, match="all comparisons are ties"):
        bradley_terry([[0, 0], [0, 0]], [[0, 2], [2, 0]])
    with pytest.raises(DataError, match="square"):
        bradley_terry([[0, 1]])


def test_two_way_clusters_by_hand():
    """Prompts a, b and labelers 1, 2 answer 1 1 / 1 0: the rate is 3/4, deviations are 1/4 1/4 / 1/4 -3/4.

    Sums by prompt and by labeler are 1/2 and -1/2: V = 2 (1/4 + 1/4) / 16 = 1/16 each. By both: 4/3 (3/16 + 9/16) / 16
    = 1/16. V = 1/16 + 1/16 - 1/16, for which the rate is one of 3/16 / (1/16) = 3 trials. Degrees of freedom:
    1 / (1 + 1 + 1/3) < 1, so the least, 1, whose quantile is 12.7062.
    """
    found = clustered_win_rate([1, 1, 1, 0], ["a", "a", "b", "b"], [1, 2, 1, 2])
    z, p, n = 12.7062, 0.75, 3
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-6)


def test_clusters_without_variation():
    """All 12 answers on 4 prompts are wins: Wilson's interval of 4 of 4. One labeler: prompts alone are clusters."""
    prompts, labelers = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], [0, 1, 2] * 4
    assert clustered_win_rate([1.0] * 12, prompts, labelers) == wilson(4, 4)
    # Deviations of +-1/2 by prompt: V = 4/3 (4/4) / 16 = 1/12, as 3 trials of 1/2; t with 3 degrees is 3.18245.
    found = clustered_win_rate([1.0, 1.0, 0.0, 0.0], [0, 1, 2, 3], ["ann"] * 4)
    assert found.high - 0.5 == pytest.approx(
        3.18245 / (1 + 3.18245**2 / 3) * (1 / 12 + 3.18245**2 / 36) ** 0.5, abs=1e-5
    )
    with pytest.raises(DataError, match="outcomes"):
        clustered_win_rate([2.0], ["a"], ["b"])


def test_hedged_capital_by_hand():
    """First bet against 1/2: sqrt(2 log(2/.05) / (.25 log 2)) = 6.5, cut at .5/.5 = 1; a win gives 1 + .5 one way and
    1 - .5 the other, so capital is half of 1.5."""
    assert np.exp(hedged_capital(np.array([1.0]), np.array([0.5]), 0.05)[0, 0]) == pytest.approx(0.75)


def test_sequential_decides_after_clear_wins():
    found = sequential_win_rate([1.0] * 40)
    # All won: capital is 1.5^n / 2, which first reaches 20 at n = log(40)/log(1.5) = 9.1.
    assert found.decided_at == 10
    assert found.interval.low > 0.5
    assert sequential_win_rate([0.5] * 100).decided_at is None
    with pytest.raises(DataError, match="outcomes"):
        sequential_win_rate([2.0])


# Coverage: each simulated study is of the setting that the interval is meant for.


def normal_prompts(random: np.random.Generator) -> tuple[Interval, float]:
    """30 prompts with 4 images each, whose prompts differ as much as their seeds."""
    x = np.repeat(random.normal(0, 1, 30), 4) + random.normal(0, 1, 120)
    return bootstrap_mean(x, np.repeat(np.arange(30), 4).tolist(), resamples=1000, seed=int(random.integers(1e9))), 0.0


def skewed_prompts(random: np.random.Generator) -> tuple[Interval, float]:
    """100 prompts with exponential rewards, by BCa."""
    x = random.exponential(size=100)
    return bootstrap_mean(x, list(range(100)), method="bca", resamples=1000, seed=int(random.integers(1e9))), 1.0


def paired(random: np.random.Generator) -> tuple[Interval, float]:
    """20 prompts with 2 images each by two models whose difference varies by prompt."""
    shared, gain = np.repeat(random.normal(0, 3, 20), 2), np.repeat(random.normal(0.5, 1, 20), 2)
    prompts = np.repeat(np.arange(20), 2).tolist()
    values = shared + gain + random.normal(0, 0.5, 40)
    return bootstrap_difference(values, shared, prompts, resamples=1000, seed=int(random.integers(1e9))), 0.5


def seeds(random: np.random.Generator) -> tuple[Interval, float]:
    """The same 8 prompts in every study, 12 images each."""
    x = np.repeat(np.arange(8.0), 12) + random.normal(0, 1, 96)
    prompts = np.repeat(np.arange(8), 12).tolist()
    return bootstrap_mean(x, prompts, over="seeds", resamples=1000, seed=int(random.integers(1e9))), 3.5


def rate(random: np.random.Generator) -> tuple[Interval, float]:
    """Wilson's, 100 trials at 0.3."""
    return wilson(int(random.binomial(100, 0.3)), 100), 0.3


def answered(
    random: np.random.Generator,
    prompts: int,
    labelers: int,
    by_prompt: float,
    by_labeler: float,
    share: float = 1.0,
    ties: float = 0.0,
) -> tuple[Interval, float]:
    """Prompts answered by a share of the labelers, both with tastes of their own; half of the decided answers win."""
    prompt, labeler = (index.ravel() for index in np.indices((prompts, labelers)))
    chance = 0.5 + random.uniform(-by_prompt, by_prompt, prompts)[prompt]
    chance += random.uniform(-by_labeler, by_labeler, labelers)[labeler]
    outcomes = (random.random(len(prompt)) < chance).astype(float)
    outcomes[random.random(len(prompt)) < ties] = 0.5
    kept = random.random(len(prompt)) < share
    return clustered_win_rate(outcomes[kept], prompt[kept].tolist(), labeler[kept].tolist()), 0.5


def win_rate(random: np.random.Generator) -> tuple[Interval, float]:
    """40 prompts answered by each of 15 labelers, both with tastes of their own."""
    return answered(random, 40, 15, 0.3, 0.15)


def win_rate_with_ties(random: np.random.Generator) -> tuple[Interval, float]:
    """40 prompts answered by each of 10 labelers, two fifths of it ties."""
    return answered(random, 40, 10, 0.3, 0.1, ties=0.4)


def win_rate_of_few_labelers(random: np.random.Generator) -> tuple[Interval, float]:
    """50 prompts answered by each of 5 labelers."""
    return answered(random, 50, 5, 0.3, 0.1)


def win_rate_of_answers_here_and_there(random: np.random.Generator) -> tuple[Interval, float]:
    """60 prompts of which each of 5 labelers answers a quarter."""
    return answered(random, 60, 5, 0.3, 0.15, share=0.25)


def win_rate_of_equal_labelers(random: np.random.Generator) -> tuple[Interval, float]:
    """Neither prompts nor labelers differ."""
    return answered(random, 40, 15, 0.0, 0.0)


def win_rate_of_one_labeler(random: np.random.Generator) -> tuple[Interval, float]:
    return answered(random, 100, 1, 0.3, 0.0)


def strengths(random: np.random.Generator) -> tuple[Interval, float]:
    """Davidson's strength difference of 3 models with 60 comparisons of each pair."""
    log_pi, nu = np.array([0.3, 0.0, -0.3]), 0.6
    wins, ties = np.zeros((3, 3)), np.zeros((3, 3))
    for i in range(3):
        for j in range(i):
            weights = np.exp([log_pi[i], log_pi[j], np.log(nu) + (log_pi[i] + log_pi[j]) / 2])
            a, b, c = random.multinomial(60, weights / weights.sum())
            wins[i, j], wins[j, i], ties[i, j], ties[j, i] = a, b, c, c
    return bradley_terry(wins, ties).difference(0, 2), 0.6


STUDIES = [
    normal_prompts, skewed_prompts, paired, seeds, rate, win_rate, win_rate_with_ties, win_rate_of_few_labelers,
    win_rate_of_answers_here_and_there, win_rate_of_equal_labelers, win_rate_of_one_labeler, strengths,
]  # fmt: skip


def coverage(study: Callable[[np.random.Generator], tuple[Interval, float]], studies: int) -> float:
    random = np.random.default_rng(0)
    hits = [found.low <= truth <= found.high for found, truth in (study(random) for _ in range(studies))]
    return sum(hits) / studies


@pytest.mark.parametrize("study", STUDIES)
def test_coverage_quickly(study: Callable[[np.random.Generator], tuple[Interval, float]]):
    """300 studies at 95 % lie within 91 and 99 %, three deviations of a binomial around 95 %."""
    assert 0.91 <= coverage(study, 300) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_coverage(study: Callable[[np.random.Generator], tuple[Interval, float]]):
    assert 0.93 <= coverage(study, 4000) <= 0.97


def false_decisions(studies: int, answers: int, ties: float) -> float:
    """The share of studies without a difference that are decided at some time, looked at after every answer."""
    random = np.random.default_rng(0)
    drawn = random.random((studies, answers))
    outcomes = np.where(drawn < ties, 0.5, np.where(drawn < ties + (1 - ties) / 2, 1.0, 0.0))
    return sum(sequential_win_rate(row, points=3).decided_at is not None for row in outcomes) / studies


@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_sequential_errors_quickly(ties: float):
    assert false_decisions(400, 300, ties) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_sequential_errors(ties: float):
    assert false_decisions(2000, 2000, ties) <= 0.05


def test_sequential_interval_contains_the_rate_and_shrinks():
    random = np.random.default_rng(0)
    outcomes = (random.random(2000) < 0.6).astype(float)
    short, long = sequential_win_rate(outcomes[:200]), sequential_win_rate(outcomes)
    assert short.interval.low < 0.6 < short.interval.high
    assert long.interval.low < 0.6 < long.interval.high
    assert long.interval.high - long.interval.low < (short.interval.high - short.interval.low) / 2
    assert long.decided_at is not None
