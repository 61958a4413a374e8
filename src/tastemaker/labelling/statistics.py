"""How a project goes: progress, pace, and how each labeler labels and agrees with the others.

Only assignments that count are in the figures of agreement: complete, and neither skipped nor beyond the overlap. An
answer is what a labeler says of one *unit*: of each two images in the modes pair and rank, of the task in best, and of
each image in rate.
"""

from __future__ import annotations

import dataclasses
import statistics as numbers
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tastemaker.labelling.agreement import Alpha, Metric, Share, krippendorff, share
from tastemaker.labelling.answers import (
    Answer,
    TaskImages,
    comparisons,
    read_answers,
    read_names,
    read_tasks,
    that_count,
)
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Assignment, JudgementRow

PACE_SECONDS = 3600.0
"""The time before now over which the pace is taken."""
_SAYS: dict[str, int] = {"a": 1, "tie": 0, "both_bad": 0, "b": -1}

Unit = tuple[int, ...]
"""(task, first image, second image), (task,) or (task, image)."""


@dataclass(frozen=True)
class Progress:
    """How far a project has come."""

    tasks: int
    """Tasks to be labelled; gold and withdrawn ones are none."""
    tasks_done: int
    """Tasks with as many answers as the overlap asks for."""
    answers: int
    """Complete assignments that count."""
    answers_wanted: int
    """tasks * overlap."""
    skipped: int
    """Assignments that were skipped."""
    surplus: int
    """Complete assignments beyond the overlap, which are kept and left out of exports."""
    open: int
    """Assignments that a labeler has now."""
    judgements: int
    """Rows, corrections and undos included."""
    votes: int
    """Comparisons, choices and ratings in force in complete assignments, those of gold and repeated tasks included."""
    per_hour: float | None
    """Answers in the last hour; None where there were none."""
    hours_left: float | None
    """What is missing, at the pace of the last hour."""


@dataclass(frozen=True)
class Day:
    """Votes of one day."""

    date: str
    """YYYY-MM-DD, UTC."""
    votes: int


@dataclass(frozen=True)
class LabelerStatistics:
    """How one labeler labels."""

    user: int
    name: str
    answers: int
    """Complete assignments that count."""
    votes: int
    median_seconds: float | None
    """Of a vote, from when the images were shown; None where no vote has a time."""
    left: Share
    """Comparisons with a winner in which the left image won; without a bias, half of them."""
    ties: Share
    """Comparisons without a winner; in best, choices of none."""
    skips: Share
    """Complete assignments that were skipped."""
    consistency: Share
    """Units of repeated tasks that were answered as before."""
    gold: Share
    """Comparisons of gold tasks that were answered right."""
    disagreement: Share
    """Answers of other labelers on the same units that were different."""
    marks: dict[str, int]
    """Images marked, by mark."""
    last: float | None
    """When the labeler last finished a task; seconds since 1970-01-01 UTC."""


@dataclass(frozen=True)
class Statistics:
    """Everything above, of one moment."""

    progress: Progress
    alpha: Alpha | None
    """Krippendorff's alpha of all labelers: ordinal (a win, a tie, a loss) for comparisons, and nominal else. None
    where no two labelers have answered the same, or all answers are the same."""
    left: Share
    """As each labeler's, of all together."""
    consistency: Share
    gold: Share
    labelers: tuple[LabelerStatistics, ...]
    """By name; those without any complete assignment are not in it."""
    days: tuple[Day, ...]
    marks: dict[str, int]


def statistics(session: Session, settings: Labelling, now: float) -> Statistics:
    """The statistics of a project, from one reading of its database."""
    tasks, names = read_tasks(session), read_names(session)
    answers = read_answers(session, settings)
    counted = list(that_count(answers))
    by_unit = _by_unit(settings, counted)
    labelers = []
    for user, own in _by_user(answers).items():
        labelers.append(_labeler(settings, user, names[user], own, tasks, by_unit))
    labelers.sort(key=lambda labeler: (labeler.name.casefold(), labeler.user))
    days = Counter(day for answer in answers for day in _days_of(answer))
    return Statistics(
        _progress(session, settings, tasks, answers, counted, now),
        _alpha(settings, by_unit),
        _sum(labeler.left for labeler in labelers),
        _sum(labeler.consistency for labeler in labelers),
        _sum(labeler.gold for labeler in labelers),
        tuple(labelers),
        tuple(Day(day, days[day]) for day in sorted(days)),
        {mark: sum(one.marks.get(mark, 0) for one in labelers) for mark in settings.marks},
    )


def to_json(found: Statistics) -> dict[str, Any]:
    """The statistics as JSON takes them."""
    return dataclasses.asdict(found)


def said(settings: Labelling, answer: Answer) -> dict[tuple[int, ...], Any]:
    """What an answer says of each unit, whose name is without the task. Both bad counts as a tie."""
    if settings.mode == "best":
        return {(): -1 if answer.state.best is None else answer.state.best}
    if settings.mode == "rate":
        return {(image,): rating for image, rating in answer.state.ratings.items()}
    return {(a, b): _SAYS[outcome] for a, b, outcome in comparisons(settings, answer)}


def _progress(
    session: Session,
    settings: Labelling,
    tasks: Mapping[int, TaskImages],
    answers: Sequence[Answer],
    counted: Sequence[Answer],
    now: float,
) -> Progress:
    normal = {task.id for task in tasks.values() if task.kind == "normal"}
    done = Counter(answer.task for answer in counted)
    given = sum(min(done[task], settings.overlap) for task in normal)
    recent = sum(answer.finished_at > now - PACE_SECONDS for answer in counted)
    missing = len(normal) * settings.overlap - given
    held = session.execute(
        sa.select(sa.func.count())
        .select_from(Assignment)
        .where(Assignment.finished_at.is_(None), Assignment.lease_until > now)
    ).scalar_one()
    return Progress(
        tasks=len(normal),
        tasks_done=sum(done[task] >= settings.overlap for task in normal),
        answers=len(counted),
        answers_wanted=len(normal) * settings.overlap,
        skipped=sum(answer.skipped for answer in answers),
        surplus=sum(answer.surplus and not answer.skipped for answer in answers),
        open=held,
        judgements=session.execute(sa.select(sa.func.count()).select_from(JudgementRow)).scalar_one(),
        votes=sum(len(answer.votes) for answer in answers),
        per_hour=float(recent) if recent else None,
        hours_left=0.0 if missing == 0 else missing / recent if recent else None,
    )


def _labeler(
    settings: Labelling,
    user: int,
    name: str,
    own: Sequence[Answer],
    tasks: Mapping[int, TaskImages],
    by_unit: Mapping[Unit, Mapping[int, Any]],
) -> LabelerStatistics:
    votes = [vote for answer in own if not answer.surplus for vote in answer.votes]
    seconds = [vote.elapsed_ms / 1000 for vote in votes if vote.elapsed_ms is not None]
    compared = [vote.outcome for vote in votes if vote.kind == "compare"]
    chosen = [vote.image for vote in votes if vote.kind == "best"]
    decided = [outcome for outcome in compared if outcome in ("left", "right")]
    normal = [answer for answer in own if answer.kind == "normal" and not answer.surplus]
    marks = Counter(mark for answer in normal for given in answer.state.marks.values() for mark in given)
    return LabelerStatistics(
        user, name, sum(1 for _ in that_count(list(own))), len(votes),
        numbers.median(seconds) if seconds else None,
        share(sum(outcome == "left" for outcome in decided), len(decided)),
        share(len(compared) - len(decided) + sum(image is None for image in chosen), len(compared) + len(chosen)),
        share(sum(answer.skipped for answer in own), len(own)),
        _consistency(settings, own), _gold(settings, own, tasks), _disagreement(settings, user, own, by_unit),
        dict(marks), max((answer.finished_at for answer in own), default=None),
    )  # fmt: skip


def _consistency(settings: Labelling, own: Iterable[Answer]) -> Share:
    first = {answer.task: answer for answer in own if answer.kind == "normal" and not answer.skipped}
    same = of = 0
    for again in own:
        if again.kind == "repeat" and not again.skipped and again.task in first:
            before, after = said(settings, first[again.task]), said(settings, again)
            same += sum(after[unit] == value for unit, value in before.items())
            of += len(before)
    return share(same, of)


def _gold(settings: Labelling, own: Iterable[Answer], tasks: Mapping[int, TaskImages]) -> Share:
    right = of = 0
    for answer in own:
        if answer.kind != "gold" or answer.skipped:
            continue
        given = {(a, b): _SAYS[outcome] for a, b, outcome in comparisons(settings, answer)}
        for a, b, outcome in tasks[answer.task].gold:
            pair = (min(a, b), max(a, b))
            if settings.mode == "best" and pair not in given:
                continue  # two images that were not chosen are not compared
            known = _SAYS[outcome] if a < b else -_SAYS[outcome]
            right += given.get(pair, 0) == known
            of += 1
    return share(right, of)


def _disagreement(
    settings: Labelling, user: int, own: Iterable[Answer], by_unit: Mapping[Unit, Mapping[int, Any]]
) -> Share:
    different = of = 0
    for answer in that_count(list(own)):
        for unit in said(settings, answer):
            given = by_unit[(answer.task, *unit)]
            different += sum(value != given[user] for value in given.values())
            of += len(given) - 1
    return share(different, of)


def _by_unit(settings: Labelling, answers: Iterable[Answer]) -> dict[Unit, dict[int, Any]]:
    """What each labeler says of each unit."""
    found: dict[Unit, dict[int, Any]] = {}
    for answer in answers:
        for unit, value in said(settings, answer).items():
            found.setdefault((answer.task, *unit), {})[answer.user] = value
    return found


def _alpha(settings: Labelling, by_unit: Mapping[Unit, Mapping[int, Any]]) -> Alpha | None:
    values: Sequence[Any] = (-1, 0, 1)
    metric: Metric = "ordinal"
    if settings.mode == "best":
        values, metric = range(-1, settings.task_size), "nominal"
    if settings.mode == "rate":
        values, metric = ("down", "up"), "nominal"
    units = {unit: list(given.values()) for unit, given in by_unit.items()}
    return krippendorff(units, {unit: unit[0] for unit in units}, values, metric, seed=settings.seed)


def _by_user(answers: Iterable[Answer]) -> dict[int, list[Answer]]:
    found: dict[int, list[Answer]] = {}
    for answer in answers:
        found.setdefault(answer.user, []).append(answer)
    return found


def _days_of(answer: Answer) -> list[str]:
    times = dict(zip((judgement.id for judgement in answer.judgements), answer.times, strict=True))
    return [datetime.fromtimestamp(times[vote.id], timezone.utc).strftime("%Y-%m-%d") for vote in answer.votes]


def _sum(shares: Iterable[Share]) -> Share:
    listed = list(shares)
    return share(sum(one.cases for one in listed), sum(one.of for one in listed))
