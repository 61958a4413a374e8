"""DPG-Bench (Hu et al. 2024, "ELLA", arXiv 2403.05135), and DSG-1k (Cho et al. 2024), whose table has the same form.

The file is dpg_bench/dpg_bench.csv of github.com/TencentQQGYLab/ELLA, or dsg-1k-anns.csv of github.com/j-min/DSG, a
question a row, with the columns item_id, text, keywords, proposition_id, dependency, category_broad, category_detailed,
tuple, question_natural_language. A dependency is a proposition_id of the same item, several with commas, or 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    check_dependencies,
    mean,
    of_images,
    with_parents,
)
from tastemaker.question_benchmarks.rows import text

ASKED = "{} Please answer yes or no."
"""ELLA's own model, mPLUG, answers with one word to the bare question."""
BROAD, DETAILED = "category", "detailed category"


def read(path: Path) -> Benchmark:
    """The benchmark in a file. Raises DataError."""
    items: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for where, row in read_table(path):
        items.setdefault(text(row, "item_id", where), []).append((where, row))
    return Benchmark("dpg", str(path), tuple(_prompt(*item) for item in items.items()), "choice", 4, measures)


def measures(images: Sequence[ImageScores]) -> list[Measure]:
    """The mean over an image's questions, with 0 below a parent that has 0; and the answers by category, without that.

    As compute_dpg_bench.py, but all images of a prompt count in the categories, where the script takes the last of its
    grid, and the first row of the table counts, which the script skips.
    """
    return [
        of_images("", "DPG", images, lambda image: mean(list(with_parents(image, in_turn=True).values()))),
        *by_question_category(BROAD, images),
        *by_question_category(DETAILED, images),
    ]


def _prompt(item: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Prompt:
    first, row = rows[0]
    prompt = text(row, "text", first)
    questions: list[Question] = []
    for where, row in rows:
        if text(row, "text", where).split() != prompt.split():
            raise DataError(f"{where}, column text: item {item} has another text at {first}")
        question = _question(row, where)
        if question.id in [other.id for other in questions]:
            raise DataError(f"{where}, column proposition_id: item {item} has a question {question.id} already")
        questions.append(question)
    check_dependencies(questions, [where for where, _ in rows], "dependency")
    return Prompt(item, prompt, tuple(questions))


def _question(row: Mapping[str, Any], where: str) -> Question:
    number = text(row, "proposition_id", where)
    parents = re.split(r"\s*,\s*", text(row, "dependency", where))
    for column, value in (("proposition_id", number), *(("dependency", parent) for parent in parents)):
        if not value.isdecimal():
            raise DataError(f"{where}, column {column}: expected a whole number, but found {value!r}")
    # The tuple is `attribute - color (cube, red)`.
    detailed = text(row, "tuple", where).partition("(")[0].strip()
    return Question(
        str(int(number)),
        ASKED.format(text(row, "question_natural_language", where)),
        ("yes",),
        depends_on=tuple(str(int(parent)) for parent in parents if int(parent)),
        categories={BROAD: (detailed.partition("-")[0].strip(),), DETAILED: (detailed,)},
    )
