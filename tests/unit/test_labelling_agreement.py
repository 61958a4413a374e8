"""Agreement of labelers, against worked examples that were published."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tastemaker.labelling.agreement import krippendorff, share

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), part C: four observers, twelve units, with gaps.
C = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""


def units(table):
    rows = [line.split() for line in table.strip().splitlines()]
    return {number: [int(row[number]) for row in rows if row[number] != "."] for number in range(len(rows[0]))}


def alpha(found, values, metric="nominal", **more):
    return krippendorff(found, {name: name for name in found}, values, metric, **more)


def test_binary_values_of_two_labelers():
    # Part A: Meg 0 1 0 0 0 0 0 0 1 0 and Owen 1 1 1 0 0 1 0 0 0 0. Of 20 values 14 are 0 and 6 are 1; 0 and 1 meet in
    # four units: alpha = 1 - 19 * 4 / (14 * 6) = 0.0952.
    meg, owen = list("0100000010"), list("1110010000")
    found = alpha({n: list(pair) for n, pair in enumerate(zip(meg, owen, strict=True))}, ["0", "1"])
    assert found is not None
    assert found.value == pytest.approx(1 - 19 * 4 / 84)
    assert (found.units, found.tasks) == (10, 10)


def test_nominal_values_of_two_labelers():
    # Part B, which gives 0.692.
    ben, gerry = list("aabbdcccedda"), list("babbbccceddd")
    found = alpha({n: list(pair) for n, pair in enumerate(zip(ben, gerry, strict=True))}, list("abcde"))
    assert found is not None
    assert found.value == pytest.approx(0.692, abs=5e-4)


@pytest.mark.parametrize(("metric", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_four_labelers_with_gaps(metric, published):
    found = alpha(units(C), [1, 2, 3, 4, 5], metric)
    assert found is not None
    assert found.value == pytest.approx(published, abs=5e-4)
    assert found.units == 11  # the last unit has one answer
    assert found.low < found.value < found.high


def test_full_agreement_is_one_and_one_value_alone_says_nothing():
    found = alpha({0: ["a", "a"], 1: ["b", "b"]}, ["a", "b"])
    assert found is not None
    assert found.value == 1
    assert alpha({0: ["a", "a"], 1: ["a", "a"]}, ["a", "b"]) is None
    assert alpha({0: ["a"], 1: ["b"]}, ["a", "b"]) is None
    assert alpha({}, ["a", "b"]) is None


def test_the_interval_draws_whole_tasks():
    """Ten pairs of one task that say the same are one observation: the interval must not become narrower by them."""
    rng = np.random.default_rng(1)
    answers = [[str(a), str(a if rng.random() < 0.8 else 1 - a)] for a in rng.integers(0, 2, 60)]
    single = krippendorff(dict(enumerate(answers)), {n: n for n in range(60)}, ["0", "1"])
    copies = {(n, copy): answer for n, answer in enumerate(answers) for copy in range(10)}
    clustered = krippendorff(copies, {name: name[0] for name in copies}, ["0", "1"])
    alone = krippendorff(copies, {name: name for name in copies}, ["0", "1"])
    assert single is not None
    assert clustered is not None
    assert alone is not None
    assert clustered.tasks == 60
    assert clustered.high - clustered.low == pytest.approx(single.high - single.low, rel=0.05)
    assert alone.high - alone.low < 0.5 * (clustered.high - clustered.low)


def test_the_bootstrap_covers_as_the_jackknife_says():
    """A second estimate of the spread: the delete-one jackknife over tasks."""
    rng = np.random.default_rng(3)
    found = {n: [str(v) for v in (a, a if rng.random() < 0.7 else 1 - a)] for n, a in enumerate(rng.integers(0, 2, 80))}
    whole = alpha(found, ["0", "1"], resamples=4000)
    assert whole is not None
    left = [alpha({k: v for k, v in found.items() if k != n}, ["0", "1"], resamples=1) for n in found]
    values = np.array([one.value for one in left if one is not None])
    spread = math.sqrt(79 / 80 * ((values - values.mean()) ** 2).sum())
    assert (whole.high - whole.low) / (2 * 1.96) == pytest.approx(spread, rel=0.1)


def test_wilson_interval():
    # 8 of 10, z = 1.959964: centre (0.8 + z^2 / 20) / (1 + z^2 / 10) = 0.716741, half width
    # z / (1 + z^2 / 10) * sqrt(0.8 * 0.2 / 10 + z^2 / 400) = 0.226570.
    found = share(8, 10)
    assert found.value == 0.8
    assert found.low == pytest.approx(0.716741 - 0.226570, abs=5e-5)
    assert found.high == pytest.approx(0.716741 + 0.226570, abs=5e-5)
    nothing = share(0, 0)
    assert (nothing.value, nothing.low, nothing.high) == (None, None, None)
    none = share(0, 5)
    assert none.low == 0
    assert none.high == pytest.approx(1.959964**2 / (5 + 1.959964**2), abs=1e-6)
