"""What labelers have said, read out of a project's database: every complete assignment with the state it came to."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tastemaker.labelling.judgements import from_row
from tastemaker.labelling.ranking import Judgement, State, implied, live, state
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Assignment, JudgementRow, Prompt, Task, TaskImage, User


@dataclass(frozen=True)
class TaskImages:
    """A task with its images by position."""

    id: int
    number: int
    prompt: str
    split: str
    kind: str
    gold: tuple[tuple[int, int, str], ...]
    """Comparisons that are known to be right."""
    images: tuple[str, ...]
    """SHA-256."""
    models: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """A labeler's complete assignment."""

    assignment: int
    task: int
    user: int
    number: int
    """Counts the labeler's assignments."""
    kind: str
    """`normal`, `gold` or `repeat`."""
    presentation: tuple[int, ...]
    sides: str
    finished_at: float
    skipped: bool
    surplus: bool
    judgements: tuple[Judgement, ...]
    """Oldest first, superseded ones included."""
    times: tuple[float, ...]
    """When each judgement was stored."""
    state: State

    @property
    def votes(self) -> list[Judgement]:
        """The comparisons, choices and ratings that are in force."""
        return [judgement for judgement in live(self.judgements) if judgement.kind in ("compare", "best", "rate")]


def read_tasks(session: Session, split: str | None = None) -> dict[int, TaskImages]:
    """The tasks by id, in the order of their numbers; those of one part of the split, or all."""
    images: dict[int, list[tuple[str, str]]] = {}
    found = sa.select(TaskImage.task_id, TaskImage.sha256, TaskImage.model).order_by(TaskImage.position)
    for task, sha256, model in session.execute(found):
        images.setdefault(task, []).append((sha256, model))
    tasks = sa.select(Task.id, Task.number, Prompt.text, Prompt.split, Task.kind, Task.gold).join(
        Prompt, Task.prompt_id == Prompt.id
    )
    if split is not None:
        tasks = tasks.where(Prompt.split == split)
    return {
        row.id: TaskImages(
            row.id, row.number, row.text, row.split, row.kind, tuple((a, b, said) for a, b, said in row.gold or ()),
            tuple(sha256 for sha256, _ in images.get(row.id, ())), tuple(model for _, model in images.get(row.id, ())),
        )
        for row in session.execute(tasks.order_by(Task.number))
    }  # fmt: skip


def read_names(session: Session) -> dict[int, str]:
    """The names of all users by id."""
    return {row.id: row.name for row in session.execute(sa.select(User.id, User.name).order_by(User.id))}


def read_answers(session: Session, settings: Labelling, users: Collection[int] | None = None) -> list[Answer]:
    """The complete assignments, ordered by labeler and number, skipped and surplus ones included."""
    log: dict[int, list[tuple[Judgement, float]]] = {}
    judgements = (
        sa.select(JudgementRow.__table__)
        .join(Assignment, JudgementRow.assignment_id == Assignment.id)
        .where(Assignment.finished_at.is_not(None))
        .order_by(JudgementRow.id)
    )
    assignments = sa.select(Assignment.__table__).where(Assignment.finished_at.is_not(None))
    if users is not None:
        judgements = judgements.where(Assignment.user_id.in_(users))
        assignments = assignments.where(Assignment.user_id.in_(users))
    for row in session.execute(judgements):
        log.setdefault(row.assignment_id, []).append((from_row(row), row.created))
    return [
        _answer(settings, row, log.get(row.id, []))
        for row in session.execute(assignments.order_by(Assignment.user_id, Assignment.number))
    ]


def that_count(answers: list[Answer], surplus: bool = False) -> Iterator[Answer]:
    """The answers that a project was to get: no gold and repeated tasks, none skipped, and none beyond the overlap
    unless `surplus`."""
    for answer in answers:
        if answer.kind == "normal" and not answer.skipped and (surplus or not answer.surplus):
            yield answer


def comparisons(settings: Labelling, answer: Answer) -> list[tuple[int, int, str]]:
    """All comparisons that an answer says, as `ranking.implied` has them."""
    return implied(settings, answer.presentation, answer.state)


def _answer(settings: Labelling, row: Any, log: list[tuple[Judgement, float]]) -> Answer:
    judgements = tuple(judgement for judgement, _ in log)
    presentation = tuple(row.presentation)
    return Answer(
        row.id, row.task_id, row.user_id, row.number, row.kind, presentation, row.sides, row.finished_at, row.skipped,
        row.surplus, judgements, tuple(created for _, created in log), state(settings, presentation, judgements),
    )  # fmt: skip
