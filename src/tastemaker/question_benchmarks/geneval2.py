"""GenEval 2 (Kamath et al. 2025, arXiv 2512.16853): Soft-TIFA, the probabilities of the expected answers.

The file is geneval2_data.jsonl of github.com/facebookresearch/GenEval2, a prompt a line:

    {"prompt": "two metal toys", "atom_count": 3, "vqa_list": [["How many toys are in the image?", "two"], ...],
     "skills": ["count", ...]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tastemaker.data.tables import read_table
from tastemaker.errors import DataError
from tastemaker.question_benchmarks.benchmark import (
    YES_NO,
    Benchmark,
    ImageScores,
    Measure,
    Prompt,
    Question,
    by_prompt_category,
    by_question_category,
    geometric_mean,
    mean,
    of_images,
)
from tastemaker.question_benchmarks.rows import cell, checked, text
from tastemaker.rewards.vlm.answers import NUMBERS

ASKED = "{} Answer in one word."
"""evaluation.py, `soft_tifa`."""
SKILL, ATOMS = "skill", "atoms"


def read(path: Path) -> Benchmark:
    """The benchmark in a file. Raises DataError."""
    prompts = tuple(_prompt(row, where, index) for index, (where, row) in enumerate(read_table(path)))
    return Benchmark("geneval2", str(path), prompts, "probability", 1, measures)


def measures(images: Sequence[ImageScores]) -> list[Measure]:
    """Soft-TIFA GM and AM, the geometric and arithmetic means of an image's scores; by skill of answers (AM), and by
    the number of atoms of prompts (GM), as soft_tifa_analysis.py.
    """
    return [
        of_images("", "Soft-TIFA GM", images, _geometric),
        of_images("", "Soft-TIFA AM", images, lambda image: mean(list(image.scores.values()))),
        *by_question_category(SKILL, images),
        *sorted(by_prompt_category(ATOMS, images, _geometric), key=lambda measure: int(measure.name)),
    ]


def _geometric(image: ImageScores) -> float:
    return geometric_mean(list(image.scores.values()))


def _prompt(row: Mapping[str, Any], where: str, index: int) -> Prompt:
    pairs, skills = cell(row, "vqa_list", where), cell(row, "skills", where)
    if not isinstance(pairs, list) or not pairs:
        raise DataError(f"{where}, column vqa_list: expected a list of questions with their answers")
    if not isinstance(skills, list) or len(skills) != len(pairs):
        raise DataError(f"{where}, column skills: expected a list of {len(pairs)}, one for each of vqa_list")
    atoms = cell(row, "atom_count", where)
    if not isinstance(atoms, int) or isinstance(atoms, bool):
        raise DataError(f"{where}, column atom_count: expected a whole number, but found {atoms!r}")
    questions = tuple(
        _question(pair, checked(skill, "skills", where), str(number), where)
        for number, (pair, skill) in enumerate(zip(pairs, skills, strict=True), 1)
    )
    return Prompt(str(index), text(row, "prompt", where), questions, {ATOMS: (str(atoms),)})


def _question(pair: Any, skill: str, number: str, where: str) -> Question:
    if not isinstance(pair, list) or len(pair) != 2:
        raise DataError(f"{where}, column vqa_list: expected a question and its answer, but entry {number} is {pair!r}")
    asked, answer = (checked(one, "vqa_list", where) for one in pair)
    counted = asked.startswith("How many")
    if counted and answer.lower() not in NUMBERS:
        raise DataError(
            f"{where}, column vqa_list: the answer to {asked!r} is {answer!r}, but must be one of {', '.join(NUMBERS)}"
        )
    if not counted and answer.lower() != "yes":
        raise DataError(
            f"{where}, column vqa_list: the answer to {asked!r} is {answer!r}, but must be Yes, as of all questions "
            "of this benchmark that do not begin with How many"
        )
    return Question(
        number, ASKED.format(asked), (answer,), NUMBERS if counted else YES_NO, categories={SKILL: (skill,)}
    )
