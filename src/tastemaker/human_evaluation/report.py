"""The one-file HTML page of a comparison's result."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from PIL import Image

from tastemaker.evaluation.statistics import Interval
from tastemaker.human_evaluation.analysis import Asked, Result
from tastemaker.human_evaluation.figures import plots
from tastemaker.human_evaluation.outcomes import LEAST_LABELERS, Outcome
from tastemaker.human_evaluation.study import Study
from tastemaker.human_evaluation.tables import by_prompt, ends, percent, status
from tastemaker.labelling.answers import TaskImages
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.statistics import LabelerStatistics
from tastemaker.labelling.table_files import read_image_file
from tastemaker.report.grid import LARGEST, PIXEL_ART
from tastemaker.report.page import render_page, write_page

EXAMPLES = 6
"""Prompts with images that are shown for each question and model."""
MOST_PROMPTS = 500
"""Rows of the table by prompt; prompts.csv has all."""


@dataclass(frozen=True)
class Cell:
    """A model's image of an example."""

    src: str
    name: str
    text: str
    preferred: bool


@dataclass(frozen=True)
class Example:
    """The images of a prompt and seed."""

    prompt: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Section:
    """Examples under a heading."""

    title: str
    examples: tuple[Example, ...]


def write_report(
    path: Path,
    project: Path,
    study: Study,
    settings: Labelling,
    tasks: Mapping[int, TaskImages],
    result: Result,
    labelers: Sequence[LabelerStatistics],
    command: str,
) -> Path:
    """Writes the page. Images and prompts are on it when the study may stop, and not before. Raises DataError."""
    source = resources.files("tastemaker.human_evaluation").joinpath("report.html").read_text(encoding="utf-8")
    names = [model.name for model in study.models]
    sections, size = _sections(project, study, tasks, result) if result.may_stop else ([], (1, 1))
    rows = by_prompt(result.found) if result.may_stop else []
    page = render_page(
        source, title=f"{' and '.join(names)} compared · tastemaker", name=project.name, study=study, names=names,
        result=result, status=status(result), lead=lead(study, result), notes=notes(study, settings, result),
        level=f"{100 * study.stopping.level:.4g} %", percent=percent, ends=ends, plots=plots(study, result),
        sections=sections, rows=rows[:MOST_PROMPTS], more_rows=max(0, len(rows) - MOST_PROMPTS),
        labelers=labelers, mode=settings.mode, overlap=settings.overlap, command=command,
        ratio=f"{size[0]} / {size[1]}", pixelated=max(size) <= PIXEL_ART,
    )  # fmt: skip
    return write_page(path, page)


def lead(study: Study, result: Result) -> list[str]:
    """What was found in words, a sentence for each question, or for each two models where these are asked for."""
    return [sentence for one in result.asked for sentence in (_chosen(study, one) or _preferred(study, one))]


def _chosen(study: Study, one: Asked) -> list[str]:
    """How often each of three models is the best of all; empty for two, of which that says no more than a win rate."""
    if len(study.models) < 3 or not one.best:
        return []
    ranked = sorted(range(len(study.models)), key=lambda model: -one.best[model].share.estimate)
    shares = [
        f"{study.models[model].name} in {percent(one.best[model].share)} ({ends(one.best[model].share)})"
        for model in ranked
    ]
    listed = f"{', '.join(shares[:-1])} and {shares[-1]}"
    return [f"{_title(study, one)}: the best of all is {listed} of {one.answers} answers."]


def _preferred(study: Study, one: Asked) -> list[str]:
    found, names = [], [model.name for model in study.models]
    for each in one.preferences:
        if each.rate is None:
            continue
        first, second, rate = names[each.first], names[each.second], each.rate
        if rate.estimate < 0.5:
            first, second = second, first
            rate = Interval(1 - rate.estimate, 1 - rate.high, 1 - rate.low)
        if rate.estimate == 0.5:
            found.append(f"{_title(study, one)}: {first} and {second} are preferred equally often ({ends(rate)}).")
            continue
        clear = "" if rate.low > 0.5 else ", which may be chance"
        found.append(
            f"{_title(study, one)}: {first} is preferred to {second} in {percent(rate)} of {each.answers} answers "
            f"({ends(rate)}){clear}."
        )
    return found


def _title(study: Study, one: Asked) -> str:
    return study.questions[one.question].name.capitalize()


def notes(study: Study, settings: Labelling, result: Result) -> list[str]:
    """What a reader should know before relying on the figures, a sentence each."""
    found = []
    if not result.may_stop:
        found.append(
            "These are figures before the end of the study. Prompts and images are left out, so that who labels does "
            "not learn whose images they are."
        )
    elif result.reason == "every preference is decided" and result.answers < result.wanted:
        found.append(
            "The study ended when its preferences were decided. The sequential intervals allow for that; the others "
            "are those of a study whose length was settled before."
        )
    if result.labelers == 1:
        found.append("All answers are one labeler's: the intervals are of what this labeler prefers.")
    elif result.labelers < LEAST_LABELERS:
        found.append(
            f"There are {result.labelers} labelers only: the intervals are of what these labelers prefer, and not of "
            "what others would."
        )
    if result.identical:
        found.append(
            f"{result.identical} of {len(study.tasks)} tasks show an image twice, because two models made the same. "
            "These two count as a tie, whatever was answered."
        )
    if settings.mode == "best" and len(study.models) > 2:
        found.append(
            "Labelers chose the best of three, so that two models are compared only where one of them was chosen."
        )
    if result.others:
        found.append(f"{result.others} answers to tasks that are none of the comparison's are left out.")
    return found


# ---------------------------------------------------------------- images


def _sections(
    project: Path, study: Study, tasks: Mapping[int, TaskImages], result: Result
) -> tuple[list[Section], tuple[int, int]]:
    """For each question and model the prompts for which its image was preferred most, and the size of images."""
    images = _images(study, tasks)
    size = (1, 1)
    found = []
    for one in result.asked:
        wins = _wins([each for each in result.found if each.question == one.question])
        for model, compared in enumerate(study.models):
            best = sorted(wins, key=lambda row: (-wins[row].get(model, 0.0), row))
            best = [row for row in best if wins[row].get(model, 0.0) > 0.5][:EXAMPLES]
            examples = []
            for row in best:
                top = max(wins[row].values())
                cells = []
                for index, name in images[row].items():
                    src, size = _inlined(project, name)
                    share = wins[row].get(index)
                    text = "–" if share is None else f"{100 * share:.0f} %"
                    cells.append(Cell(src, study.models[index].name, text, share == top))
                examples.append(Example(row[0], tuple(cells)))
            if examples:
                question = study.questions[one.question].name
                found.append(Section(f"{question.capitalize()}: {compared.name} preferred most", tuple(examples)))
    return found, size


def _images(study: Study, tasks: Mapping[int, TaskImages]) -> dict[tuple[str, int], dict[int, str]]:
    """The image of each model by prompt and seed, models in their order."""
    by_number = {task.number: task for task in tasks.values()}
    found: dict[tuple[str, int], dict[int, str]] = {}
    for task in study.tasks:
        shown = by_number[task.number]
        found.setdefault((shown.prompt, task.seed), {}).update(zip(task.models, shown.images, strict=True))
    return {row: dict(sorted(images.items())) for row, images in found.items()}


def _wins(found: Sequence[Outcome]) -> dict[tuple[str, int], dict[int, float]]:
    """How often each model's image of a prompt and seed was preferred to the others'; ties are half."""
    values: dict[tuple[str, int], dict[int, list[float]]] = {}
    for one in found:
        row = values.setdefault((one.prompt, one.seed), {})
        row.setdefault(one.first, []).append(one.value)
        row.setdefault(one.second, []).append(1 - one.value)
    return {row: {model: sum(v) / len(v) for model, v in given.items()} for row, given in values.items()}


def _inlined(project: Path, sha256: str) -> tuple[str, tuple[int, int]]:
    """An image as a data URI: as it is where it is small, else a smaller JPEG; and its size."""
    with Image.open(io.BytesIO(read_image_file(project, sha256)), formats=("PNG",)) as image:
        image.load()
        size = image.size
        kind, options = "JPEG", {"quality": 88}
        if max(size) <= PIXEL_ART:
            kind, options = "PNG", {"optimize": True}
        else:
            image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}", size
