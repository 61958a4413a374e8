"""The figures of an evaluation: every metric of every model and prompt set, with intervals and paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from tastemaker.data.images import read_image, to_tensor
from tastemaker.errors import ConfigError, DataError
from tastemaker.evaluation.distribution_metrics import (
    clip_logits,
    inception_score,
    pairwise_diversity,
    vendi_score,
)
from tastemaker.evaluation.evaluated_models import EvaluatedModel
from tastemaker.evaluation.evaluation_files import EvaluationFolder
from tastemaker.evaluation.evaluation_plan import FEATURE_METRICS, EvaluationPlan, PromptSet
from tastemaker.evaluation.features import Extractor, frechet_distance, kernel_distance, load_features
from tastemaker.evaluation.metrics import diversity
from tastemaker.evaluation.sampled_images import has_divergence
from tastemaker.evaluation.scored_images import ImageScores
from tastemaker.evaluation.statistics import (
    Interval,
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_statistic,
    rate_interval,
)
from tastemaker.runs import atomic
from tastemaker.spread import moments

Array = NDArray[np.float64]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Images in the folder of `--reference`."""


@dataclass(frozen=True)
class TableRow:
    """One figure: a metric of a model on a prompt set."""

    model: str
    prompts: str
    metric: str
    """A reward's name, the win rate of one (`win rate: NAME`), or one of evaluation_plan.METRICS."""
    kind: str
    """`trained reward` where the model was trained on it, else `reward`, `win rate` or `metric`."""
    value: Interval
    """Its ends are NaN where one batch alone says how fast sampling is."""
    difference: Interval | None
    """To the model that it is compared with, over the same prompts and seeds."""
    in_base_std: Interval | None
    """The difference of a reward in standard deviations of the images of the model that it is compared with."""
    images: int
    prompt_count: int
    note: str = ""
    """What the figure depends on: the feature extractor, the images compared with."""

    def as_dict(self) -> dict[str, Any]:
        """A row of table.csv."""
        other = self.difference
        return {
            "model": self.model, "prompts": self.prompts, "metric": self.metric, "kind": self.kind,
            "value": self.value.estimate, "low": _known(self.value.low), "high": _known(self.value.high),
            "difference": None if other is None else other.estimate,
            "difference_low": None if other is None else other.low,
            "difference_high": None if other is None else other.high,
            "difference_in_base_std": None if self.in_base_std is None else self.in_base_std.estimate,
            "images": self.images, "prompt_count": self.prompt_count, "note": self.note,
        }  # fmt: skip


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class ImageFigures:
    """What is known of each of the N images of a model and prompt set."""

    prompt: NDArray[np.int64]
    """[N] numbers of the prompts."""
    rewards: Mapping[str, Array]
    """[N] by their labels."""
    correct: tuple[bool | None, ...]
    """[N] the judge's verdicts."""
    kl: Array | None
    """[N] nats along the chain; None where it was not measured."""
    seconds: Array
    """[batches] of sampling."""
    sizes: Array
    """[batches] images in each."""


def image_figures(
    plan: EvaluationPlan, folder: EvaluationFolder, scores: ImageScores
) -> dict[tuple[str, str], ImageFigures]:
    """What is known of each image, by model and prompt set. Raises DataError for an image that cannot be read."""
    found = {}
    for prompt_set in plan.prompt_sets:
        numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompt_set.draw.prompt_index))}
        parts = plan.parts(prompt_set)
        for model in plan.models:
            records = [folder.sampled[model.label, prompt_set.name, number] for number in range(len(parts))]
            kl = [value for record in records for value in record.get("kl", ())]
            correct = [verdict for record in records for verdict in record.get("correct", ())]
            found[model.label, prompt_set.name] = ImageFigures(
                np.array([numbers[prompt] for prompt in prompt_set.draw.prompt_index]),
                {
                    label: scores.values[name, model.label, prompt_set.name]
                    for name, label in plan.reward_labels.items()
                },
                tuple(correct or [None] * len(prompt_set.draw)),
                np.array(kl) if kl else None,
                np.array([record["seconds"] for record in records]),
                np.array([float(len(part)) for part in parts]),
            )
    return found


def extractor_of(plan: EvaluationPlan) -> Extractor | None:
    """What computes the features; None where no metric reads any.

    Raises RewardError where there is none of its name, ConfigError where it is no CLIP and one is needed.
    """
    if plan.features is None or not set(plan.metrics) & set(FEATURE_METRICS):
        return None
    extractor = load_features(plan.features, plan.device)
    if "clip-inception" in plan.metrics and extractor.clip is None:
        raise ConfigError(
            f"the metric clip-inception needs a CLIP, but --features is {extractor.name}: give a CLIP, or leave the "
            "metric out"
        )
    return extractor


def table(
    plan: EvaluationPlan,
    folder: EvaluationFolder,
    figures: Mapping[tuple[str, str], ImageFigures],
    extractor: Extractor | None,
    advance: Callable[[], None] = lambda: None,
) -> list[TableRow]:
    """All figures, model by model within each prompt set. Calls `advance` after each of these.

    `extractor` is that of `extractor_of(plan)`.

    Intervals are of 95 % over prompts, each drawn with all its images, which contains the variation of seeds
    (`statistics.bootstrap_mean`). Raises DataError.
    """
    given = None
    if extractor is not None and plan.reference is not None:
        given = _features_of_folder(plan.reference, extractor)
    rows: list[TableRow] = []
    for prompt_set in plan.prompt_sets:
        features = {}
        for model in plan.models:
            if extractor is not None:
                features[model.label] = _features(plan, folder, model, prompt_set, extractor)
            rows += _rows(plan, folder, figures, model, prompt_set)
            if extractor is not None:
                rows += _feature_rows(plan, model, prompt_set, figures, features, extractor, given)
            advance()
    return rows


def _rows(
    plan: EvaluationPlan,
    folder: EvaluationFolder,
    figures: Mapping[tuple[str, str], ImageFigures],
    model: EvaluatedModel,
    prompt_set: PromptSet,
) -> list[TableRow]:
    """The figures that need no features."""
    own = figures[model.label, prompt_set.name]
    other = None if model.reference is None else figures[model.reference, prompt_set.name]
    made = _Maker(model, prompt_set, own.prompt)
    rows: list[TableRow] = []
    trained = {plan.reward_labels.get(name) for name in model.trained_on}
    for label, values in own.rewards.items():
        base = None if other is None else other.rewards[label]
        kind = "trained reward" if label in trained else "reward"
        rows.append(made.mean(label, kind, values, base, in_base_std=True))
        if base is not None:
            wins = np.where(values == base, 0.5, values > base)
            rows.append(made.mean(f"win rate: {label}", "win rate", wins, None, rate=True))
    known = np.array([verdict is not None for verdict in own.correct])
    if known.any():
        right = np.array([bool(verdict) for verdict in own.correct], np.float64)[known]
        base = None
        if other is not None and all(other.correct[index] is not None for index in np.flatnonzero(known)):
            base = np.array([bool(verdict) for verdict in other.correct], np.float64)[known]
        rows.append(_Maker(model, prompt_set, own.prompt[known]).mean("judge", "metric", right, base, rate=True))
    if "diversity" in plan.metrics:
        several = _prompts_with_several(own.prompt)
        if several:
            base = None if other is None or model.reference is None else model.reference
            spread = [_pixel_diversity(folder, model.label, prompt_set, rows_) for rows_ in several]
            before = None if base is None else [_pixel_diversity(folder, base, prompt_set, rows_) for rows_ in several]
            rows.append(made.of_prompts("diversity", spread, before))
    if own.kl is not None and has_divergence(plan, model):
        rows.append(made.mean("kl", "metric", own.kl, None))
    if "speed" in plan.metrics:
        speed = bootstrap_statistic(
            lambda index: own.sizes[index].sum() / own.seconds[index].sum(), ["all batches"] * len(own.sizes),
            resamples=2000,
        )  # fmt: skip
        note = f"{plan.precision} on {plan.device}, batches of {plan.sampling.batch}"
        alone = len(own.sizes) == 1
        found = Interval(speed[0].estimate, math.nan, math.nan) if alone else speed[0]
        rows.append(made.row("speed", "metric", found, None, note=f"{note}; one batch" if alone else note))
    return rows


@dataclass(frozen=True)
class _Maker:
    """Rows of one model and prompt set."""

    model: EvaluatedModel
    prompt_set: PromptSet
    prompt: NDArray[np.int64]
    """[N]"""

    def row(
        self, metric: str, kind: str, value: Interval, difference: Interval | None, std: Interval | None = None,
        note: str = "",
    ) -> TableRow:  # fmt: skip
        count = len(set(self.prompt.tolist()))
        return TableRow(
            self.model.label, self.prompt_set.name, metric, kind, value, difference, std, len(self.prompt), count, note
        )

    def mean(
        self,
        metric: str,
        kind: str,
        values: Array,
        base: Array | None,
        *,
        rate: bool = False,
        in_base_std: bool = False,
    ) -> TableRow:
        prompts = self.prompt.tolist()
        value = rate_interval(values, prompts) if rate else bootstrap_mean(values, prompts)
        if base is None:
            return self.row(metric, kind, value, None)
        difference = bootstrap_difference(values, base, prompts)
        unit = moments(torch.from_numpy(base))[1]
        ends = [x / unit if unit > 0 else 0.0 for x in (difference.estimate, difference.low, difference.high)]
        scaled = Interval(*ends) if in_base_std and unit > 0 else None
        return self.row(metric, kind, value, difference, scaled)

    def of_prompts(
        self, metric: str, values: Sequence[float], base: Sequence[float] | None, note: str = ""
    ) -> TableRow:
        """Of one number for each prompt."""
        groups = range(len(values))
        difference = None if base is None else bootstrap_difference(values, base, groups)
        return self.row(metric, "metric", bootstrap_mean(values, groups), difference, note=note)


def _prompts_with_several(prompt: NDArray[np.int64]) -> list[list[int]]:
    """The images of each prompt that has two or more."""
    rows = [np.flatnonzero(prompt == number).tolist() for number in dict.fromkeys(prompt.tolist())]
    return [own for own in rows if len(own) > 1]


def _pixel_diversity(folder: EvaluationFolder, label: str, prompt_set: PromptSet, rows: Sequence[int]) -> float:
    return diversity(folder.read(label, prompt_set, rows), [prompt_set.draw.prompts[index] for index in rows])


def _features(
    plan: EvaluationPlan, folder: EvaluationFolder, model: EvaluatedModel, prompt_set: PromptSet, extractor: Extractor
) -> Tensor:
    """[N,F] of a model's images, computed once and kept."""
    file = folder.features(model.label, prompt_set)
    if file.is_file():
        try:
            return load(file.read_bytes())["features"]
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"the features {file} cannot be read: {error}; remove the file") from error
    found = torch.cat([extractor(folder.read(model.label, prompt_set, part)) for part in plan.parts(prompt_set)])
    atomic.replace_atomic(file, save({"features": found.contiguous()}))
    return found


def reference_files(path: Path) -> list[Path]:
    """The images of `--reference`, with those of its folders. Raises DataError where there are fewer than two."""
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if len(found) < 2:
        raise DataError(f"--reference is {path}, which has {len(found)} images, but FID and KID need two or more")
    return found


def _features_of_folder(path: Path, extractor: Extractor) -> Tensor:
    """[M,F]; one by one, since their sizes may differ."""
    return torch.cat([extractor(to_tensor(read_image(file, str(path)))[None]) for file in reference_files(path)])


def _feature_rows(
    plan: EvaluationPlan,
    model: EvaluatedModel,
    prompt_set: PromptSet,
    figures: Mapping[tuple[str, str], ImageFigures],
    features: Mapping[str, Tensor],
    extractor: Extractor,
    given: Tensor | None,
) -> list[TableRow]:
    """The figures of features; those of the model that it is compared with are there already."""
    prompt = figures[model.label, prompt_set.name].prompt
    own, base = features[model.label], None if model.reference is None else features[model.reference]
    made, rows = _Maker(model, prompt_set, prompt), []
    for metric, function in (("pairwise", pairwise_diversity), ("vendi", vendi_score)):
        several = _prompts_with_several(prompt)
        if metric in plan.metrics and several:
            values = [function(own[index]) for index in several]
            before = None if base is None else [function(base[index]) for index in several]
            rows.append(made.of_prompts(metric, values, before, extractor.name))
    if "clip-inception" in plan.metrics and extractor.clip is not None:
        classes, clip = prompt_set.prompts, extractor.clip
        logits = [None if x is None else clip_logits(x.to(plan.device), classes, clip).cpu() for x in (own, base)]
        note = f"{extractor.name}, classes: the {len(classes)} prompts"
        rows.append(_of_sets(made, "clip-inception", inception_score, logits[0], logits[1], note))
    for metric, distance in (("fid", frechet_distance), ("kid", kernel_distance)):
        if metric not in plan.metrics:
            continue
        if given is not None:
            compared = lambda x, distance=distance: distance(x, given)  # noqa: E731
            note = f"{extractor.name}, to {len(given)} images of {plan.reference}"
            rows.append(_of_sets(made, metric, compared, own, base, note))
        elif base is not None:
            between = lambda index, distance=distance: distance(own[index], base[index])  # noqa: E731
            note = f"{extractor.name}, to the images of {model.reference}"
            (value,) = bootstrap_statistic(between, prompt.tolist())
            rows.append(made.row(metric, "metric", value, None, note=note))
    return rows


def _of_sets(
    made: _Maker,
    metric: str,
    function: Callable[[Tensor], float],
    own: Tensor | None,
    base: Tensor | None,
    note: str,
) -> TableRow:
    """A figure of all images together; the base model's is of the same prompts in every resample."""
    assert own is not None

    def statistic(index: NDArray[np.int64]) -> list[float]:
        value = function(own[index])
        return [value] if base is None else [value, value - function(base[index])]

    found = bootstrap_statistic(statistic, made.prompt.tolist())
    return made.row(metric, "metric", found[0], found[1] if base is not None else None, note=note)
