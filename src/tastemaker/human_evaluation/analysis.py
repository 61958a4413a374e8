"""Win rates, strengths, agreement, and whether a comparison may stop: pure functions of what was answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tastemaker.errors import DataError
from tastemaker.evaluation.statistics import (
    Interval,
    Sequential,
    bootstrap_mean,
    clustered_win_rate,
    sequential_win_rate,
    wilson,
)
from tastemaker.human_evaluation.outcomes import (
    Choice,
    Outcome,
    choices,
    identical_tasks,
    labeler_clusters,
    outcomes,
    that_belong,
)
from tastemaker.human_evaluation.strengths import Strengths, strengths
from tastemaker.human_evaluation.study import Study
from tastemaker.labelling.agreement import Alpha, krippendorff
from tastemaker.labelling.answers import Answer, TaskImages
from tastemaker.labelling.settings import Labelling


@dataclass(frozen=True)
class Preference:
    """How often the images of one model are preferred to those of another, by one question."""

    question: int
    first: int
    second: int
    wins: int
    """Answers that prefer `first`."""
    ties: int
    losses: int
    identical: int
    """Ties for which the two images are the same."""
    prompts: int
    labelers: int
    rate: Interval | None
    """Wins and half of the ties among all, with the interval of two-way clusters (`clustered_win_rate`). None where no
    answer compares the two."""
    wilson: Interval | None
    """Of answers that are independent of each other."""
    bootstrap: Interval | None
    """Of prompts drawn anew, each with all its answers."""
    sequential: Interval | None
    """Of prompts that have all their answers, however often one looks; at the level of the whole study's decisions.
    None where no prompt has them."""
    decided: bool
    """Whether 1/2 was outside the sequential interval after some prompt."""
    decided_at: int | None
    """The number of prompts after which."""
    prompts_complete: int
    """Prompts with all their answers."""

    @property
    def answers(self) -> int:
        return self.wins + self.ties + self.losses


@dataclass(frozen=True)
class Best:
    """How often a model's image was the best of all."""

    share: Interval
    """With the interval of two-way clusters; images that share the first place have equal parts of it."""
    wilson: Interval


@dataclass(frozen=True)
class Asked:
    """What one question found."""

    question: int
    answers: int
    wanted: int
    preferences: tuple[Preference, ...]
    best: tuple[Best, ...]
    """By model; empty in mode pair."""
    none_good: int
    """Answers by which no image was good."""
    strengths: Strengths
    agreement: Alpha | None
    """Krippendorff's alpha of the preferences (ordinal), or of the choices of the best (nominal)."""


@dataclass(frozen=True)
class Result:
    """What a comparison found so far."""

    asked: tuple[Asked, ...]
    answers: int
    wanted: int
    labelers: int
    prompts: int
    """Prompts that have answers."""
    may_stop: bool
    reason: str
    """Why the study may stop, or what is missing; a sentence without its full stop."""
    identical: int
    """Tasks that show the same image twice."""
    others: int
    """Answers to tasks that are none of the comparison's."""
    found: tuple[Outcome, ...]
    chosen: tuple[Choice, ...]


def analyse(
    study: Study,
    settings: Labelling,
    tasks: Mapping[int, TaskImages],
    answers: Sequence[Answer],
    without: Collection[int] = (),
) -> Result:
    """The result of the answers that count, without those of the labelers `without`.

    Raises DataError where nobody has answered, or one of the questions is unanswered.
    """
    own, others = that_belong(study, tasks, answers)
    kept = [answer for answer in own if answer.user not in without]
    if not kept:
        raise DataError("nobody has answered a task of the comparison yet")
    found = outcomes(study, settings, tasks, kept)
    chosen = choices(study, settings, tasks, kept) if settings.mode != "pair" else []
    given = Counter(tasks[answer.task].number for answer in own)
    full = {task.number for task in study.tasks if given[task.number] >= settings.overlap}
    asked = tuple(
        _asked(study, settings, tasks, index, found, chosen, kept, full) for index in range(len(study.questions))
    )
    may_stop, reason = _may_stop(study, asked, len(full) == len(study.tasks))
    return Result(
        asked, len(kept), len(study.tasks) * settings.overlap, len({answer.user for answer in kept}),
        len({one.prompt for one in found}), may_stop, reason, len(identical_tasks(study, tasks)), others,
        tuple(found), tuple(chosen),
    )  # fmt: skip


def _asked(
    study: Study,
    settings: Labelling,
    tasks: Mapping[int, TaskImages],
    question: int,
    found: Sequence[Outcome],
    chosen: Sequence[Choice],
    answers: Sequence[Answer],
    full: Collection[int],
) -> Asked:
    level = study.stopping.level
    asking = {task.number for task in study.tasks if task.question == question}
    count = sum(tasks[answer.task].number in asking for answer in answers)
    if not count:
        raise DataError(f"nobody has answered the question {study.questions[question].name!r} yet")
    own = [one for one in found if one.question == question]
    best = [one for one in chosen if one.question == question]
    preferences = tuple(
        preference(
            question, first, second, [one for one in own if (one.first, one.second) == (first, second)],
            _complete_prompts(study, tasks, question, first, second, full), level,
            1 - (1 - level) / study.decisions,
        )
        for first, second in study.pairs
    )  # fmt: skip
    return Asked(
        question, count, len(asking) * settings.overlap, preferences,
        tuple(best_share(best, model, level) for model in range(len(study.models))) if best else (),
        sum(not one.best for one in best), strengths(own, len(study.models), level),
        _agreement(own, best, settings.seed),
    )  # fmt: skip


def preference(
    question: int,
    first: int,
    second: int,
    found: Sequence[Outcome],
    complete: Collection[str],
    level: float,
    sequential_level: float,
) -> Preference:
    """The preference between two models out of the answers that compare them, in the order in which they came.

    `complete` are the prompts that have all their answers; see `decision`.
    """
    values, prompts = [one.value for one in found], [one.prompt for one in found]
    labelers = [one.labeler for one in found]
    sequential, count = decision(found, complete, sequential_level)
    counts = Counter(values)
    return Preference(
        question, first, second, counts[1.0], counts[0.5], counts[0.0], sum(one.identical for one in found),
        len(set(prompts)), len(set(labelers)),
        clustered_win_rate(values, prompts, labeler_clusters(labelers), level=level) if values else None,
        wilson(sum(values), len(values), level) if values else None,
        bootstrap_mean(values, prompts, level=level) if values else None,
        None if sequential is None else sequential.interval,
        sequential is not None and sequential.decided_at is not None,
        None if sequential is None else sequential.decided_at, count,
    )  # fmt: skip


def decision(found: Sequence[Outcome], complete: Collection[str], level: float) -> tuple[Sequential | None, int]:
    """The sequential interval of the prompts that have all their answers, and how many these are; None where none has.

    A prompt's mean is one observation, in the order in which prompts were completed: prompts come in a random order and
    are independent of each other, where the answers on one of them are not.
    """
    by_prompt: dict[str, list[float]] = {}
    last: dict[str, int] = {}
    for index, one in enumerate(found):
        by_prompt.setdefault(one.prompt, []).append(one.value)
        last[one.prompt] = index
    ordered = sorted((prompt for prompt in by_prompt if prompt in complete), key=lambda prompt: last[prompt])
    means = [sum(by_prompt[prompt]) / len(by_prompt[prompt]) for prompt in ordered]
    return (sequential_win_rate(means, level) if means else None), len(means)


def best_share(chosen: Sequence[Choice], model: int, level: float) -> Best:
    """How often a model's image is the best of all. Choices by which none is good count for nobody."""
    values = [1 / len(one.best) if model in one.best else 0.0 for one in chosen]
    prompts, labelers = [one.prompt for one in chosen], [one.labeler for one in chosen]
    return Best(
        clustered_win_rate(values, prompts, labeler_clusters(labelers), level=level),
        wilson(sum(values), len(values), level),
    )


def _complete_prompts(
    study: Study, tasks: Mapping[int, TaskImages], question: int, first: int, second: int, full: Collection[int]
) -> set[str]:
    """The prompts of which every task that asks the question of both models has its answers."""
    prompts = {task.number: task.prompt for task in tasks.values()}
    asking = [task for task in study.tasks if task.question == question and {first, second} <= set(task.models)]
    missing = {prompts[task.number] for task in asking if task.number not in full}
    return {prompts[task.number] for task in asking} - missing


def _agreement(found: Sequence[Outcome], chosen: Sequence[Choice], seed: int) -> Alpha | None:
    if chosen and all(len(one.best) < 2 for one in chosen):
        values = [*sorted({one.best for one in chosen})]
        units: dict[tuple[int, ...], list] = {}
        for one in chosen:
            units.setdefault((one.task,), []).append(one.best)
        return krippendorff(units, {unit: unit[0] for unit in units}, values, "nominal", seed=seed)
    units = {}
    for one in found:
        if not one.identical:
            units.setdefault((one.task, one.first, one.second), []).append(one.value)
    return krippendorff(units, {unit: unit[0] for unit in units}, (0.0, 0.5, 1.0), "ordinal", seed=seed)


def _may_stop(study: Study, asked: Sequence[Asked], complete: bool) -> tuple[bool, str]:
    if complete:
        return True, "every task has its answers"
    most = study.stopping.max_answers
    if most is not None and all(one.answers >= most for one in asked):
        return True, f"each question has its {most} answers"
    open_ones = [one for each in asked for one in each.preferences if not one.decided]
    answered = f"{sum(one.answers for one in asked)} of {sum(one.wanted for one in asked)} answers are given"
    if study.stopping.when == "complete":
        return False, answered
    if not open_ones:
        return True, "every preference is decided"
    names = [one.name for one in study.models]
    listed = [f"{names[one.first]} or {names[one.second]} ({study.questions[one.question].name})" for one in open_ones]
    return False, f"{answered}; undecided: {', '.join(listed)}"
