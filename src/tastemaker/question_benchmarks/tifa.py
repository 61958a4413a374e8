"""TIFA v1.0 (Hu et al. 2023, arXiv 2303.11897): questions with choices, by the type of what they are about.

The file is tifa_v1.0/tifa_v1.0_question_answers.json of github.com/Yushi-Hu/tifa, an array of

    {"id": "coco_301091", "caption": "On a gray day a surfer ...", "question": "is this a surfer?",
     "choices": ["yes", "no"], "answer": "yes", "element_type": "animal/human", "element": "surfer"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tastemaker.data.tables import read_table
from tastemaker.errors import DataError
from tastemaker.question_benchmarks.benchmark import (
    Benchmark,
    ImageScores,
    Measure,
    Prompt,
    Question,
    by_question_category,
    mean,
    of_images,
)
from tastemaker.question_benchmarks.rows import cell, checked, name, text
from tastemaker.question_benchmarks.scoring import normalised

ASKED = "Answer the multiple-choice question. Question: {} Choices: {} Answer:"
"""vqa_models.py, `BLIP2.vqa`."""
TYPE = "element type"


def read(path: Path, free_form: bool = False) -> Benchmark:
    """The benchmark in a file; with `free_form`, questions are asked without their choices. Raises DataError."""
    items: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for where, row in read_table(path):
        items.setdefault(name(cell(row, "id", where), "id", where), []).append((where, row))
    prompts = tuple(_prompt(item, rows, free_form) for item, rows in items.items())
    return Benchmark(
        "tifa-free-form" if free_form else "tifa", str(path), prompts, "choice", 1, measures, free_form=free_form
    )


read_free_form = partial(read, free_form=True)


def measures(images: Sequence[ImageScores]) -> list[Measure]:
    """The mean over an image's questions, and over all questions of an element type (tifa_score.py)."""
    return [
        of_images("", "TIFA", images, lambda image: mean(list(image.scores.values()))),
        *by_question_category(TYPE, images),
    ]


def _prompt(item: str, rows: Sequence[tuple[str, Mapping[str, Any]]], free_form: bool) -> Prompt:
    first, row = rows[0]
    caption = text(row, "caption", first)
    for where, row in rows:
        if text(row, "caption", where).split() != caption.split():
            raise DataError(f"{where}, column caption: {item} has another caption at {first}")
    asked = [_question(row, str(number), where, free_form) for number, (where, row) in enumerate(rows, 1)]
    return Prompt(item, caption, tuple(asked))


def _question(row: Mapping[str, Any], number: str, where: str, free_form: bool) -> Question:
    asked, answer = text(row, "question", where), text(row, "answer", where)
    choices = cell(row, "choices", where)
    if not isinstance(choices, list) or not choices:
        raise DataError(f"{where}, column choices: expected a list of answers, but found {choices!r}")
    choices = tuple(checked(choice, "choices", where) for choice in choices)
    if normalised(answer) not in map(normalised, choices):
        raise DataError(f"{where}, column answer: {answer!r} is none of the choices {', '.join(map(repr, choices))}")
    return Question(
        number,
        asked if free_form else ASKED.format(asked, ", ".join(choices)),
        (answer,),
        choices,
        categories={TYPE: (text(row, "element_type", where),)},
    )
