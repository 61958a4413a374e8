"""OneIG-Bench (Chang et al. 2025, arXiv 2506.07977): its alignment, questions with dependencies.

Of github.com/OneIG-Bench/OneIG-Benchmark: OneIG-Bench.csv with the columns category, id, prompt_en, and a file of
questions for each of the categories that have some, scripts/alignment/Q_D/anime.json, human.json and object.json:

    {"000": {"question": "{\\"1\\": \\"Are there boys?\\", \\"2\\": \\"Are there four boys?\\"}",
             "dependency": "{\\"1\\": [0], \\"2\\": [1]}"}}

In Chinese OneIG-Bench-ZH.csv with prompt_cn, and anime_zh.json, ..., multilingualism_zh.json.
"""

from __future__ import annotations

import json
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
    by_prompt_category,
    check_dependencies,
    mean,
    of_images,
    with_parents,
)
from tastemaker.question_benchmarks.rows import cell, checked, mapping, name, read_object, text

ASKED = "{}. Please answer 'Yes' or 'No' only."
"""scripts/utils/inference.py, `infer_semantic`."""
CLASS = "class"
CLASSES = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Multilingualism": "multilingualism",
}
"""Files of questions by the category of the prompts (text2image.py)."""
FOLDERS = ("scripts/alignment/Q_D", "Q_D", ".")


def read(folder: Path, chinese: bool = False) -> Benchmark:
    """The benchmark in a folder: the repository, or one with the table, and the questions in it or in Q_D.

    Raises DataError.
    """
    table = folder / ("OneIG-Bench-ZH.csv" if chinese else "OneIG-Bench.csv")
    prompts: dict[tuple[str, str], str] = {}
    for where, row in read_table(table):
        kind = CLASSES.get(text(row, "category", where))
        if kind is not None:
            key = kind, text(row, "id", where)
            if key in prompts:
                raise DataError(f"{where}, column id: there is a prompt {key[1]} of {key[0]} already")
            prompts[key] = text(row, "prompt_cn" if chinese else "prompt_en", where)
    found: list[Prompt] = []
    for kind in CLASSES.values():
        file = _questions_file(folder, f"{kind}_zh.json" if chinese else f"{kind}.json")
        if file is None:
            continue
        for number, entry in read_object(file).items():
            if (kind, number) not in prompts:
                raise DataError(f"{file}, entry {number}: {table.name} has no prompt {number} of {kind}")
            prompt = prompts[kind, number]
            found.append(Prompt(f"{kind}/{number}", prompt, _questions(entry, f"{file}, entry {number}"), _of(kind)))
    if not found:
        raise DataError(
            f"{folder} has no files of questions (anime.json, ...) in {', '.join(FOLDERS[:2])} or in itself: give the "
            "folder of github.com/OneIG-Bench/OneIG-Benchmark"
        )
    return Benchmark("oneig-zh" if chinese else "oneig", str(folder), tuple(found), "choice", 4, measures)


read_chinese = partial(read, chinese=True)


def measures(images: Sequence[ImageScores]) -> list[Measure]:
    """The mean over an image's questions, with 0 below a parent whose own answer is no (alignment_score.py)."""

    def value(image: ImageScores) -> float:
        return mean(list(with_parents(image, in_turn=False).values()))

    return [of_images("", "alignment", images, value), *by_prompt_category(CLASS, images, value)]


def _of(kind: str) -> dict[str, tuple[str, ...]]:
    return {CLASS: (kind,)}


def _questions_file(folder: Path, name: str) -> Path | None:
    return next((path for place in FOLDERS if (path := folder / place / name).is_file()), None)


def _questions(entry: Any, where: str) -> tuple[Question, ...]:
    row = mapping(entry, where)
    texts, parents = _object(row, "question", where), _object(row, "dependency", where)
    if unknown := [number for number in parents if number not in texts]:
        raise DataError(f"{where}, column dependency: there is no question {unknown[0]}")
    questions = [
        Question(
            number,
            ASKED.format(checked(asked, "question", where)),
            ("yes",),
            depends_on=_parents(parents.get(number, []), where),
        )
        for number, asked in texts.items()
    ]
    check_dependencies(questions, [where] * len(questions), "dependency")
    return tuple(questions)


def _parents(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise DataError(f"{where}, column dependency: expected a list of questions, but found {value!r}")
    return tuple(number for one in value if (number := name(one, "dependency", where)) != "0")


def _object(row: Mapping[str, Any], column: str, where: str) -> dict[str, Any]:
    """A cell with a JSON object, which the published files have as text."""
    value = cell(row, column, where)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"{where}, column {column}: not JSON ({error})") from error
    found = mapping(value, f"{where}, column {column}")
    if not found:
        raise DataError(f"{where}, column {column}: there are no questions")
    return found
