"""What the answers of a comparison say of its models: pure functions of tasks and answers.

Two models that made the same image, to the pixel, are equal there whatever was answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from tastemaker.human_evaluation.study import ComparedTask, Study
from tastemaker.labelling.answers import Answer, TaskImages, comparisons
from tastemaker.labelling.settings import Labelling

LEAST_LABELERS = 5
"""Labelers from whom one may conclude on others. Of fewer, intervals are of what these very labelers prefer."""


@dataclass(frozen=True)
class Outcome:
    """One labeler's preference between two models' images of a prompt and seed."""

    question: int
    first: int
    """A model, which is named before `second`."""
    second: int
    value: float
    """1 where the image of `first` is preferred, 0 where that of `second` is, 0.5 for a tie."""
    prompt: str
    seed: int
    labeler: int
    task: int
    """The task's number."""
    identical: bool
    """Whether the two images are the same."""


@dataclass(frozen=True)
class Choice:
    """One labeler's choice of the best image of all models."""

    question: int
    best: tuple[int, ...]
    """The models whose image it is: several where these made the same image, or tied at the top of an order; none
    where no image was good."""
    prompt: str
    seed: int
    labeler: int
    task: int


def outcomes(
    study: Study, settings: Labelling, tasks: Mapping[int, TaskImages], answers: Iterable[Answer]
) -> list[Outcome]:
    """The preferences that answers say, in the order in which the answers were finished.

    pair, rank: between each two images. best: between the best image and each other one, which is as far as a choice
    goes; where none is good, all are equal. `answers` are those that count, of tasks of the study.
    """
    compared = {task.number: task for task in study.tasks}
    found = []
    for answer in sorted(answers, key=lambda one: (one.finished_at, one.assignment)):
        images = tasks[answer.task]
        task = compared[images.number]
        for (a, b), value in _preferences(settings, images.images, answer).items():
            first, second = task.models[a], task.models[b]
            if first > second:
                first, second, value = second, first, 1 - value
            same = images.images[a] == images.images[b]
            found.append(
                Outcome(task.question, first, second, value, images.prompt, task.seed, answer.user, task.number, same)
            )
    return found


def choices(
    study: Study, settings: Labelling, tasks: Mapping[int, TaskImages], answers: Iterable[Answer]
) -> list[Choice]:
    """Which model's image is the best, in the modes best and rank."""
    compared = {task.number: task for task in study.tasks}
    found = []
    for answer in sorted(answers, key=lambda one: (one.finished_at, one.assignment)):
        images = tasks[answer.task]
        task = compared[images.number]
        top = _chosen(settings, images.images, answer)
        best = tuple(sorted(task.models[position] for position in top))
        found.append(Choice(task.question, best, images.prompt, task.seed, answer.user, task.number))
    return found


def _preferences(settings: Labelling, images: Sequence[str], answer: Answer) -> dict[tuple[int, int], float]:
    """The value of each two positions a < b that an answer compares, 1 where a is preferred."""
    if settings.mode == "best":
        top = _chosen(settings, images, answer)
        pairs = list(combinations(range(len(images)), 2))
        if not top:
            return dict.fromkeys(pairs, 0.5)
        return {(a, b): 0.5 if images[a] == images[b] else float(a in top) for a, b in pairs if a in top or b in top}
    said = {"a": 1.0, "b": 0.0, "tie": 0.5, "both_bad": 0.5}
    return {(a, b): 0.5 if images[a] == images[b] else said[outcome] for a, b, outcome in comparisons(settings, answer)}


def _chosen(settings: Labelling, images: Sequence[str], answer: Answer) -> list[int]:
    """The positions of the best image, and of images that are the same."""
    if settings.mode == "best":
        best = answer.state.best
        top = () if best is None else (best,)
    else:
        top = answer.state.order[0]
    return [position for position, name in enumerate(images) if name in {images[one] for one in top}]


def labeler_clusters(labelers: Sequence[int]) -> Sequence[int]:
    """By which labeler each answer is one of a cluster; a single cluster, which is none, for fewer than 5 labelers."""
    return labelers if len(set(labelers)) >= LEAST_LABELERS else [0] * len(labelers)


def that_belong(study: Study, tasks: Mapping[int, TaskImages], answers: Iterable[Answer]) -> tuple[list[Answer], int]:
    """The answers to tasks of the study, and how many are to others, such as imported ones."""
    numbers = {task.number for task in study.tasks}
    listed = list(answers)
    own = [answer for answer in listed if tasks[answer.task].number in numbers]
    return own, len(listed) - len(own)


def identical_tasks(study: Study, tasks: Mapping[int, TaskImages]) -> list[ComparedTask]:
    """The tasks that show the same image twice."""
    by_number = {task.number: task for task in tasks.values()}
    return [task for task in study.tasks if len(set(by_number[task.number].images)) < len(task.models)]
