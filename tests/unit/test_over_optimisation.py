"""Warnings of over-optimisation by hand numbers. Where all images change alike, an interval is its own middle."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tastemaker.evaluation.over_optimisation import History, Look, Measure, Measured, Unit, begin, look, watch

IMAGES = 20
UP = 1.0
"""By how much the trained reward has risen on every image."""


def evaluation(number: int, trained: float = UP, kl: tuple[float, ...] = (), **shares: float) -> Measured:
    """After the rounds of its number, with the same value of a measure in all images."""
    held_out = {name: Measure((value,) * IMAGES) for name, value in shares.items()}
    return Measured(number, held_out, (trained if number else 0.0,) * IMAGES, kl)


def run(*values: tuple[float, ...], unit: Unit = "share", lower_is_better: bool = False) -> list[Measured]:
    """The base model's evaluation and those after it, of one measure with its values on all images."""
    measures = [Measure(each, unit, lower_is_better) for each in values]
    return [Measured(n, {"x": measure}, (float(n > 0),) * len(values[0])) for n, measure in enumerate(measures)]


def warned(looks: tuple[Look, ...]) -> list[list[str]]:
    return [[one.name for one in found.warnings] for found in looks]


def shares(*values: float, tolerance: float = 0.1, trained: float = UP) -> list[list[str]]:
    """The warnings at each evaluation after the first, of a measure with these values."""
    each = [evaluation(number, trained, diversity=value) for number, value in enumerate(values)]
    return warned(watch(each, tolerance))


def test_a_fall_counts_at_two_evaluations_in_a_row():
    """A tenth of 0.5 is 0.05: 0.44 is below 0.45, and 0.46 is not."""
    assert shares(0.5, 0.44, 0.44, 0.44) == [[], ["diversity"], ["diversity"]]
    assert shares(0.5, 0.46, 0.46, 0.46) == [[], [], []]
    assert shares(0.5, 0.44, 0.46, 0.44) == [[], [], []]
    assert shares(0.5, 0.44, 0.44, tolerance=0.15) == [[], []]


def test_twice_the_tolerance_suffices_at_one_evaluation():
    """Two tenths of 0.5 are 0.1."""
    assert shares(0.5, 0.39) == [["diversity"]]
    assert shares(0.5, 0.41) == [[]]


def test_without_a_risen_reward_there_is_no_warning():
    assert shares(0.5, 0.1, 0.1, trained=0.0) == [[], []]
    assert shares(0.5, 0.1, 0.1, trained=-1.0) == [[], []]


def test_a_run_that_learns_from_pairs_has_no_trained_reward():
    each = [Measured(number, {"diversity": Measure((value,) * IMAGES)}) for number, value in enumerate((0.5, 0.1))]
    (found,) = watch(each)
    assert found.rise is None
    assert [one.name for one in found.warnings] == ["diversity"]
    assert str(found.figures()["over_optimisation/said"]).startswith("after round 1 the model is getting worse")


def test_the_reward_has_to_rise_by_more_than_its_interval():
    """Half of the images by +1 and half by -0.9: the mean rises by 0.05, and its interval has 0 in it."""
    base, now = evaluation(0, diversity=0.5), evaluation(1, diversity=0.1)
    mixed = Measured(1, now.held_out, (1.0, -0.9) * (IMAGES // 2))
    (found,) = watch([base, mixed])
    assert found.rise is not None
    assert found.rise.estimate == pytest.approx(0.05)
    assert found.rise.low < 0 < found.rise.high
    assert not found.warnings
    assert not found.sound  # it has fallen all the same


def test_a_fall_within_the_interval_is_none():
    """Of 20 images one is wrong: the mean falls by 0.05; of ten, by 0.5 +- 0.33 or so, which is above 0.1."""
    right, one, ten = ((1.0,) * (IMAGES - wrong) + (0.0,) * wrong for wrong in (0, 1, 10))
    assert warned(watch(run(right, one, one)))[-1] == []
    assert warned(watch(run(right, ten, ten)))[-1] == ["x"]


def test_the_tolerance_of_a_reward_is_of_two_deviations_of_the_base_models():
    """Base rewards of 0 and 2 have a deviation of 1: the tolerance is 0.2, and two of them are 0.4."""
    base = (0.0, 2.0) * (IMAGES // 2)
    for lost, expected in ((0.19, [[], []]), (0.21, [[], ["x"]]), (0.41, [["x"], ["x"]])):
        later = tuple(value - lost for value in base)
        assert warned(watch(run(base, later, later, unit="reward"))) == expected


def test_what_is_better_low_must_not_rise():
    """1 - 0.2 = 0.8, of which a tenth is 0.08: 0.29 is too high, and 0.27 is not; it is told as a rise."""
    low, near, high = ((value,) * IMAGES for value in (0.2, 0.27, 0.29))
    assert warned(watch(run(low, near, near, lower_is_better=True))) == [[], []]
    found = watch(run(low, high, high, lower_is_better=True))[-1]
    assert found.changes["x"].estimate == pytest.approx(0.09)
    assert "but x rose from 0.2 to 0.29 since the base model (by 0.09 to 0.09)" in found.sentence(found.warnings)


def test_a_measure_that_rose_is_compared_with_its_highest_evaluation():
    """From 0.8 a tenth is 0.08: 0.71 is a fall, though far above the base's 0.5."""
    each = [evaluation(n, diversity=v) for n, v in enumerate((0.5, 0.7, 0.8, 0.75, 0.71, 0.71))]
    looks = watch(each)
    assert warned(looks) == [[], [], [], [], ["diversity"]]
    (one,) = looks[-1].warnings
    assert (one.since, one.before, one.after) == (2, pytest.approx(0.8), pytest.approx(0.71))
    assert "since round 2" in str(one)
    # An evaluation that is higher by chance, within the base's interval, is not what later ones are compared with.
    values = (0.5,) * IMAGES, (0.9, 0.2) * (IMAGES // 2), (0.46,) * IMAGES, (0.46,) * IMAGES
    assert warned(watch(run(*values))) == [[], [], []]


def test_too_few_images_tell_nothing():
    assert warned(watch(run((0.5,) * 15, (0.1,) * 15, (0.1,) * 15))) == [[], []]


def test_the_divergence_has_a_limit_of_its_own():
    """The interval of 30, 31, 30, 31 is about 30.5, of 0 and 61 it is wide."""
    base = evaluation(0)
    near, far = (evaluation(1, kl=values) for values in ((30.0, 31.0, 30.0, 31.0), (0.0, 61.0, 0.0, 61.0)))
    assert warned(watch([base, near], kl_limit=20)) == [["kl"]]
    assert warned(watch([base, near], kl_limit=40)) == [[]]
    assert warned(watch([base, near])) == [[]]
    assert warned(watch([base, far], kl_limit=20)) == [[]]
    told = watch([base, near], kl_limit=20)[0]
    assert "the divergence from the base model is 30.5 nats, above 20" in told.sentence(told.warnings)


def test_a_warning_is_new_once():
    looks = watch([evaluation(n, diversity=v) for n, v in enumerate((0.5, 0.3, 0.3, 0.5, 0.3))])
    assert [len(found.new) for found in looks] == [1, 0, 0, 1]
    assert [len(found.warnings) for found in looks] == [1, 1, 0, 1]
    assert [found.sound for found in looks] == [False, False, True, False]


def test_figures_and_sentence():
    (found,) = watch([evaluation(0, diversity=0.5, judge=0.8), evaluation(4, diversity=0.2, judge=0.8)])
    said = (
        "over-optimisation after round 4: the reward is +1 (1 to 1) above the base model's, but diversity fell from "
        "0.5 to 0.2 since the base model (by 0.3 to 0.3)"
    )
    expected = {
        "over_optimisation/warnings": 1, "over_optimisation/diversity/warning": 1.0, "over_optimisation/said": said,
    }  # fmt: skip
    for name, change in {"reward/mean": 1.0, "diversity": -0.3, "judge": 0.0}.items():
        expected |= {f"over_optimisation/{name}/{end}": pytest.approx(change) for end in ("change", "low", "high")}
    assert found.figures() == expected


def test_the_history_goes_through_json():
    """A resumed run finds the same: with the base, the highest evaluation, and what had fallen just before."""
    random = np.random.default_rng(0)
    each = []
    for n, v in enumerate((0.5, 1.5, 1.6, 0.6, 0.3, 0.2)):
        a, r = Measure(tuple(random.random(IMAGES) * v)), Measure(tuple(random.normal(v, 1, IMAGES)), "reward")
        each.append(Measured(n, {"a": a, "r": r}, tuple(random.normal(n, 0.1, IMAGES))))
    history = restored = begin(each[0])
    for now in each[1:]:
        one, other = look(history, now), look(restored, now)
        assert one == other
        history, restored = one.history, History.of(json.loads(json.dumps(other.history.plain())))
        assert restored == history
    assert one.warnings
    assert history.peaks["a"].round == 2


def test_runs_in_which_nothing_falls_have_no_warnings():
    """Ten runs of 12 evaluations of 32 images, whose reward rises: benchmarks/over_optimisation.py has more of them."""
    for seed in range(10):
        random = np.random.default_rng(seed)
        each = [
            Measured(
                number,
                {
                    "judge/correct": Measure(tuple((random.random(32) < 0.9).astype(float))),
                    "diversity": Measure(tuple(random.normal(0.25, 0.08, 32))),
                    "rewards/x": Measure(tuple(random.normal(size=32)), "reward"),
                },
                tuple(random.normal(2.0 * (number > 0), 1.0, 32)),
            )
            for number in range(12)
        ]
        assert not any(map(len, warned(watch(each))))
