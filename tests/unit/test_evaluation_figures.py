"""What `tastemaker evaluate` computes from images: intervals of sets, distances of features, numbers as text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from tastemaker.errors import DataError, RewardError
from tastemaker.evaluation.evaluation_table import rate_interval
from tastemaker.evaluation.evaluation_tables import interval_text
from tastemaker.evaluation.features import Extractor, frechet_distance, kernel_distance, load_features
from tastemaker.evaluation.statistics import Interval, bootstrap_mean, bootstrap_statistic


def made(seed: int, count: int, size: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + shift


def formula(x: torch.Tensor, y: torch.Tensor) -> float:
    """|m - n|^2 + tr(C + D - 2 sqrt(C D)) by scipy."""
    a, b = x.double().numpy(), y.double().numpy()
    c, d = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c + d - 2 * np.real(sqrtm(c @ d))))


def test_frechet_distance_of_features():
    """With fewer numbers than images, and with more, where it is computed in the space that the images span."""
    assert frechet_distance(made(0, 40, 5), made(1, 30, 5, 0.5)) == pytest.approx(
        formula(made(0, 40, 5), made(1, 30, 5, 0.5)), rel=1e-6
    )
    x, y = made(2, 6, 50), made(3, 8, 50, 0.3)
    assert frechet_distance(x, y) == pytest.approx(formula(x, y), rel=1e-4)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_by_hand():
    """F = 1, k(a, b) = (ab + 1)^3. x = {0, 1}: k(0, 1) = 1. y = {2, 0}: k(2, 0) = 1. Across: k(0,2) = 1, k(0,0) = 1,
    k(1,2) = 27, k(1,0) = 1, mean 7.5. MMD^2 = 1 + 1 - 2 * 7.5 = -13."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [0.0]])
    assert kernel_distance(x, y) == pytest.approx(-13, rel=1e-5)


def test_a_bootstrap_of_a_statistic_of_the_whole_set():
    """Of the mean it is `bootstrap_mean`, but for the random numbers; the interval stands about the estimate."""
    random = np.random.default_rng(0)
    prompts = np.repeat(np.arange(20), 4)
    values = random.normal(size=20)[prompts] + random.normal(size=80)
    (found,) = bootstrap_statistic(lambda index: values[index].mean(), prompts.tolist(), resamples=4000)
    known = bootstrap_mean(values, prompts.tolist(), resamples=4000)
    assert found.estimate == pytest.approx(known.estimate)
    assert found.low == pytest.approx(known.low, abs=0.03)
    assert found.high == pytest.approx(known.high, abs=0.03)


def test_all_images_of_a_prompt_are_drawn_together_and_pairs_stay_pairs():
    groups = ["a", "a", "b", "b", "b"]
    drawn: list[list[int]] = []

    def statistic(index: np.ndarray) -> list[float]:
        drawn.append(sorted(index.tolist()))
        return [float(index.sum()), 0.0]

    intervals = bootstrap_statistic(statistic, groups, resamples=50)
    assert drawn[0] == [0, 1, 2, 3, 4]
    assert {tuple(one) for one in drawn[1:]} == {(0, 0, 1, 1), (0, 1, 2, 3, 4), (2, 2, 3, 3, 4, 4)}
    assert intervals[1] == Interval(0, 0, 0)


def test_the_images_of_a_single_prompt_are_drawn():
    seen = set()
    bootstrap_statistic(lambda index: seen.add(tuple(index.tolist())) or 0.0, ["a"] * 3, resamples=30)
    assert len(seen) > 5


def test_a_bias_of_repetitions_is_taken_out():
    """The number of different images: 10 of 10, and about 6.5 in a resample, which must not move the interval."""
    (found,) = bootstrap_statistic(lambda index: float(len(set(index.tolist()))), range(10), resamples=500)
    assert found.estimate == 10
    assert found.low < 10 < found.high


def test_a_share_of_all_or_none_has_wilson_s_interval_of_the_prompts():
    """4 of 4 prompts: the lower end is n / (n + z^2) = 4 / (4 + 3.8415) = 0.5101."""
    prompts = [0, 0, 1, 1, 2, 2, 3, 3]
    all_right = rate_interval(np.ones(8), prompts)
    assert (all_right.estimate, all_right.high) == (1, 1)
    assert all_right.low == pytest.approx(0.5101, abs=1e-4)
    none = rate_interval(np.zeros(8), prompts)
    assert (none.estimate, none.low, none.high) == (0, 0, pytest.approx(1 - 0.5101, abs=1e-4))
    some = np.array([1.0, 1, 1, 0, 1, 1, 0, 0])
    assert rate_interval(some, prompts) == bootstrap_mean(some, prompts)


@pytest.mark.parametrize(
    ("interval", "sign", "text"),
    [
        (Interval(0.1234, 0.1, 0.15), False, "0.123 [0.100, 0.150]"),
        (Interval(-1.1596, -1.2, -1.1), False, "-1.16 [-1.20, -1.10]"),
        (Interval(0.5, -0.25, 1.25), True, "+0.50 [-0.25, +1.25]"),
        (Interval(1517.3, 1210, 1822), False, "1517 [1210, 1822]"),
        (Interval(0, 0, 0), True, "+0.00 [+0.00, +0.00]"),
        (Interval(0.000002, 0.000001, 0.000003), False, "0.000002 [0.000001, 0.000003]"),
        (Interval(9.83, math.nan, math.nan), False, "9.83"),
    ],
)
def test_numbers_as_text(interval: Interval, sign: bool, text: str):
    assert interval_text(interval, sign) == text


def test_feature_extractors(tmp_path, monkeypatch):
    (tmp_path / "my_features.py").write_text(
        "def pooled(images):\n    return images.mean(dim=(2, 3))\n"
        "\ndef flat(images):\n    return images.mean(dim=(1, 2, 3))\n"
        "\ndef broken(images):\n    return images.mean(dim=(2, 3)) / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_features("my_features:pooled")(images), images.mean(dim=(2, 3)))
    bundled = load_features("bundled")
    assert bundled.clip is not None
    assert torch.allclose(bundled(images), bundled.clip.images(images).detach())
    with pytest.raises(DataError, match=r"answered \(4,\) for 4 images, but must return a tensor \[images, features\]"):
        load_features("my_features:flat")(images)
    with pytest.raises(DataError, match="features that are not finite"):
        load_features("my_features:broken")(images)
    with pytest.raises(RewardError, match="the feature extractor my_features:nothing cannot be imported"):
        load_features("my_features:nothing")
    with pytest.raises(RewardError, match="the feature extractor nowhere/at/all cannot be loaded"):
        load_features("nowhere/at/all")
    assert isinstance(bundled, Extractor)
