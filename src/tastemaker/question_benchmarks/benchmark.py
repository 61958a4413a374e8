"""A benchmark of prompts with questions, the scores of their answers, and how scores become measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tastemaker.data.prompt_set import PromptSet
from tastemaker.errors import DataError

Scoring = Literal["probability", "choice"]
"""How an answer becomes a score in [0,1]. "probability": of the expected answer, among all words that the model could
have begun with. "choice": 1 where the answer is, of the question's choices, one that is expected, else 0."""
Categories = Mapping[str, tuple[str, ...]]
"""By the heading of a table of results, to which of its categories something belongs."""
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Question:
    """A question about every image of a prompt."""

    id: str
    """Its name among the prompt's questions."""
    text: str
    """As the model is asked."""
    expected: tuple[str, ...]
    """Right answers, any of them."""
    choices: tuple[str, ...] = YES_NO
    """What may be answered."""
    depends_on: tuple[str, ...] = ()
    """Questions that must be answered as expected too, for a score above 0."""
    categories: Categories = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """A prompt with its questions."""

    id: str
    """Its name in the benchmark, by which files of images may be called."""
    text: str
    questions: tuple[Question, ...]
    categories: Categories = field(default_factory=dict)


@dataclass(frozen=True)
class ImageScores:
    """The scores in [0,1] of the answers about one image, by the ids of the prompt's questions."""

    prompt: Prompt
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Measure:
    """Scores whose mean is a figure of the benchmark's."""

    heading: str
    """The table that it is a row of; "" for figures of the whole benchmark, the first of which is its main one."""
    name: str
    values: tuple[float, ...]
    """[N] in [0,1], of images or of single answers."""
    prompts: tuple[str, ...]
    """[N] the prompt of each value."""


@dataclass(frozen=True)
class Benchmark:
    """Prompts with questions, and what is made of the answers."""

    name: str
    source: str
    """The file or list that it was read from."""
    prompts: tuple[Prompt, ...]
    scoring: Scoring
    per_prompt: int
    """Images of each prompt, as the benchmark's authors evaluate."""
    measures: Callable[[Sequence[ImageScores]], list[Measure]]
    """The figures from the scores of all images: a pure function."""
    free_form: bool = False
    """Questions are asked without their choices, and an answer in other words is taken for the nearest of them."""
    whole: bool = True
    """Whether these are all prompts of the source."""

    @property
    def questions(self) -> int:
        return sum(len(prompt.questions) for prompt in self.prompts)


def take(benchmark: Benchmark, count: int) -> Benchmark:
    """`count` prompts from all over the benchmark, in its order; the benchmark itself where it has no more."""
    if count >= len(benchmark.prompts):
        return benchmark
    order = PromptSet(tuple(prompt.id for prompt in benchmark.prompts), (1.0,) * len(benchmark.prompts))
    return replace(benchmark, prompts=tuple(benchmark.prompts[i] for i in order.spread(count)), whole=False)


def check_dependencies(questions: Sequence[Question], where: Sequence[str], column: str) -> None:
    """Raises DataError where a question depends on one that the prompt does not have.

    `where` has the row of each question, and `column` is what the file calls dependencies.
    """
    known = {question.id for question in questions}
    for question, row in zip(questions, where, strict=True):
        for parent in question.depends_on:
            if parent not in known:
                raise DataError(
                    f"{row}, column {column}: question {question.id} depends on question {parent}, which the prompt "
                    f"does not have; it has {', '.join(sorted(known, key=_number))}"
                )


def _number(name: str) -> tuple[int, str]:
    return (int(name) if name.isdecimal() else 0, name)


def with_parents(image: ImageScores, *, in_turn: bool) -> dict[str, float]:
    """The scores with 0 for each question of whose parents one has 0.

    `in_turn`: as ELLA's compute_dpg_bench.py, which sets the zeros one question after the other, so that a question's
    zero counts for later ones that depend on it. Without, as OneIG's alignment_score.py, parents' own answers count.
    """
    scores = dict(image.scores)
    for question in image.prompt.questions:
        parents = scores if in_turn else image.scores
        if any(parents[parent] == 0 for parent in question.depends_on):
            scores[question.id] = 0.0
    return scores


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of numbers from 0 on; 0 where one is 0."""
    return 0.0 if min(values) == 0 else math.exp(math.fsum(map(math.log, values)) / len(values))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def of_images(heading: str, name: str, images: Sequence[ImageScores], value: Callable[[ImageScores], float]) -> Measure:
    """A measure with one value for each image."""
    return Measure(heading, name, tuple(map(value, images)), tuple(image.prompt.id for image in images))


def by_prompt_category(
    heading: str, images: Sequence[ImageScores], value: Callable[[ImageScores], float]
) -> list[Measure]:
    """A measure of one value for each image, for each category of prompts under a heading, by first appearance."""
    names = dict.fromkeys(name for image in images for name in image.prompt.categories.get(heading, ()))
    return [
        of_images(heading, name, [i for i in images if name in i.prompt.categories.get(heading, ())], value)
        for name in names
    ]


def by_question_category(heading: str, images: Sequence[ImageScores]) -> list[Measure]:
    """A measure of one value for each answer, for each category of questions under a heading, by first appearance."""
    found: dict[str, list[tuple[float, str]]] = {}
    for image in images:
        for question in image.prompt.questions:
            for name in question.categories.get(heading, ()):
                found.setdefault(name, []).append((image.scores[question.id], image.prompt.id))
    return [
        Measure(heading, name, tuple(value for value, _ in pairs), tuple(prompt for _, prompt in pairs))
        for name, pairs in found.items()
    ]
