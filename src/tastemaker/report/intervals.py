"""95 % intervals of what a run's evaluations measured, from the images that they left.

Bootstrap over prompts, each with all its images (`evaluation.statistics`); changes pair the images by prompt and seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tastemaker.evaluation.statistics import Array, Interval, bootstrap_difference, bootstrap_mean, rate_interval
from tastemaker.report.data import Checkpoint, Run, SavedImage, base_scale, number

Measure = Literal["reward/mean", "reward/base_stds", "judge/correct"]
MEASURES: tuple[Measure, ...] = ("reward/mean", "reward/base_stds", "judge/correct")


def at_evaluations(run: Run, key: str) -> dict[int, Interval]:
    """The interval of each evaluation by its round; `key` as in records, as `judge/correct` or `unseen/reward/mean`.

    Evaluations whose images are gone, or are others than those of which the record tells, have none.
    """
    measure = _measure(key)
    if measure is None:
        return {}
    scale = base_scale(run) if measure == "reward/base_stds" else (0.0, 1.0)
    recorded = {int(record["evaluation"]): number(record, f"eval/{key}") for record in run.evaluations}
    found = {}
    for checkpoint in _checkpoints(run, key):
        values, prompts = _values(checkpoint.images, measure)
        if scale is None or not len(values):
            continue
        values = (values - scale[0]) / scale[1]
        said = recorded.get(checkpoint.round)
        if said is None or not np.isclose(values.mean(), said, rtol=1e-3, atol=1e-3):
            continue
        rate = measure == "judge/correct"
        found[checkpoint.round] = rate_interval(values, prompts) if rate else bootstrap_mean(values, prompts)
    return found


def of_change(run: Run, key: str) -> Interval | None:
    """The change from the first evaluation to that of the model that the run leaves.

    None where the images of one of the two do not tell it.
    """
    measure, intervals = _measure(key), at_evaluations(run, key)
    rounds = [int(record["evaluation"]) for record in run.evaluations if number(record, f"eval/{key}") is not None]
    if measure is None or len(rounds) < 2:
        return None
    end = rounds[-1] if run.kept is None else int(run.kept["evaluation"])
    if not {rounds[0], end} <= intervals.keys():
        return None
    checkpoints = {checkpoint.round: checkpoint for checkpoint in _checkpoints(run, key)}
    pairs = [
        (one, other)
        for one, other in zip(checkpoints[rounds[0]].images, checkpoints[end].images, strict=True)
        if _value(one, measure) is not None and _value(other, measure) is not None
    ]
    before, prompts = _values([one for one, _ in pairs], measure)
    after, _ = _values([other for _, other in pairs], measure)
    scale = base_scale(run) if measure == "reward/base_stds" else (0.0, 1.0)
    if scale is None or not pairs:
        return None
    return bootstrap_difference(after / scale[1], before / scale[1], prompts)


def _measure(key: str) -> Measure | None:
    return next((measure for measure in MEASURES if key.removeprefix("unseen/") == measure), None)


def _checkpoints(run: Run, key: str) -> Sequence[Checkpoint]:
    return run.unseen if key.startswith("unseen/") else run.checkpoints


def _values(images: Sequence[SavedImage], measure: Measure) -> tuple[Array, list[str]]:
    """Of the images for which it is known, with their prompts."""
    found = [(value, image.prompt) for image in images if (value := _value(image, measure)) is not None]
    return np.array([value for value, _ in found], np.float64), [prompt for _, prompt in found]


def _value(image: SavedImage, measure: Measure) -> float | None:
    if measure == "judge/correct":
        return None if image.correct is None else float(image.correct)
    return image.reward
