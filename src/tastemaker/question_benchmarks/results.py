"""The results of a benchmark: figures with intervals, as JSON and as a Markdown page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tastemaker.errors import StorageError
from tastemaker.evaluation.statistics import bootstrap_mean
from tastemaker.question_benchmarks.benchmark import Measure
from tastemaker.runs import atomic

LEVEL = 0.95
WEIGHTS = 20_000_000
"""Most weights of resamples in memory, 8 bytes each; large benchmarks have fewer resamples, and never less than 500."""


@dataclass(frozen=True)
class Figure:
    """A mean with its interval."""

    heading: str
    """The table that it is in; "" for figures of the whole benchmark."""
    name: str
    mean: float
    """In [0,1], as the ends of the interval."""
    low: float
    high: float
    values: int
    """Images or answers that it is the mean of."""
    prompts: int


@dataclass(frozen=True)
class Results:
    """What a benchmark found about a model. Its first figure is the benchmark's main one."""

    benchmark: str
    source: str
    whole: bool
    """Whether all prompts of the source were taken."""
    images_of: str
    """The model, run or folder that the images are of."""
    vlm: str
    written: bool
    """Whether answers counted as they are written, in place of their probabilities."""
    prompts: int
    images: int
    answers: int
    no_choice: int
    """Answers that were none of their question's choices, and so wrong."""
    not_listed: int
    """Answers whose expected word was not among the likeliest, so that its probability was taken for 0."""
    figures: tuple[Figure, ...]

    def __getitem__(self, name: str) -> Figure:
        """The figure of this name, or `HEADING/NAME`. Raises KeyError."""
        for figure in self.figures:
            if name in (f"{figure.heading}/{figure.name}", figure.name):
                return figure
        raise KeyError(name)


def figures(measures: Sequence[Measure]) -> tuple[Figure, ...]:
    """Means with 95 % bootstrap intervals over prompts, each drawn with all its images and answers."""
    found = []
    for measure in measures:
        resamples = max(500, min(2000, WEIGHTS // len(measure.values)))
        interval = bootstrap_mean(measure.values, measure.prompts, level=LEVEL, resamples=resamples)
        found.append(
            Figure(
                measure.heading, measure.name, interval.estimate, interval.low, interval.high, len(measure.values),
                len(set(measure.prompts)),
            )
        )  # fmt: skip
    return tuple(found)


def markdown(results: Results) -> str:
    """A page with the figures in per cent."""
    part = "" if results.whole else " (not all of its prompts)"
    lines = [
        f"# {results.benchmark}: {results.images_of}",
        "",
        f"{results.prompts} prompts of {results.source}{part}, {results.images} images, {results.answers} answers of "
        f"{results.vlm}.",
    ]
    if results.written:
        lines += ["", "Answers counted as they are written (`--written`), and not by their probabilities."]
    if results.no_choice:
        lines += ["", f"Answers that are none of their question's choices, and count as wrong: {results.no_choice}."]
    if results.not_listed:
        lines += ["", f"Answers whose expected word is not among the likeliest, probability 0: {results.not_listed}."]
    for heading in dict.fromkeys(figure.heading for figure in results.figures):
        lines += ["", f"| {heading} | mean | 95 % interval | values | prompts |", "|---|---|---|---|---|"]
        for one in results.figures:
            if one.heading == heading:
                name = one.name.replace("|", "\\|")
                interval = f"{100 * one.low:.1f} to {100 * one.high:.1f}"
                lines.append(f"| {name} | {100 * one.mean:.1f} % | {interval} | {one.values} | {one.prompts} |")
    lines += ["", "Intervals: bootstrap over prompts."]
    return "\n".join(lines) + "\n"


def write_results(results: Results, folder: Path) -> None:
    """results.json and results.md. Raises StorageError."""
    try:
        atomic.replace_atomic(folder / "results.json", (json.dumps(asdict(results), indent=1) + "\n").encode())
        atomic.replace_atomic(folder / "results.md", markdown(results).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise StorageError(f"cannot write the results into {folder}: {error.strerror or error}") from error
