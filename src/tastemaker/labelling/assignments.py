"""Which labeler gets which task: leases, overlap, gold and repeated tasks.

A task needs `overlap` different labelers. A labeler who has a task holds one of its places: for as long as the lease
runs, and for good when the task is complete. So no task is labelled more often than asked for, and none that a labeler
left is lost. All functions are called within a writing transaction, and writers take turns.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from tastemaker.labelling.judgements import from_row
from tastemaker.labelling.places import has_place, holding, holds_place
from tastemaker.labelling.ranking import Judgement, left_right
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Assignment, JudgementRow, Prompt, Task, TaskImage

MOST_AT_ONCE = 20
"""Most open assignments that a labeler is given at a time."""
REPEAT_AFTER = 5
"""Assignments that lie at least between a task and its repetition."""


@dataclass(frozen=True)
class Assigned:
    """A task as it is shown to its labeler."""

    id: int
    prompt: str
    question: str | None
    """Asked in place of the project's question."""
    images: tuple[str, ...]
    """SHA-256 by position."""
    presentation: tuple[int, ...]
    sides: str
    judgements: tuple[Judgement, ...]
    """What the labeler has said on it so far, oldest first."""
    lease_until: float


def claim(session: Session, settings: Labelling, user: int, count: int, now: float) -> list[Assigned]:
    """Up to `count` open tasks for a user: those that the user has begun or been given first, then further ones.

    The leases of all begin anew. An empty list says that nothing is left for this user now.
    """
    count = min(count, MOST_AT_ONCE)
    lease = now + 60 * settings.lease_minutes
    chosen: list[Assignment] = []
    mine = (
        sa.select(Assignment)
        .join(Task, Task.id == Assignment.task_id)
        .where(Assignment.user_id == user, Assignment.finished_at.is_(None), Task.kind != "withdrawn")
    )
    for row in session.scalars(mine.order_by(Assignment.number)):
        if len(chosen) == count:
            break
        if holds_place(row, now) or has_place(session, settings, row, now):
            row.lease_until = lease
            row.surplus = False
            chosen.append(row)
    while len(chosen) < count:
        new = _next(session, settings, user, now)
        if new is None:
            break
        new.lease_until = lease
        session.add(new)
        session.flush()
        chosen.append(new)
    session.flush()
    return _shown(session, chosen)


def renew(session: Session, settings: Labelling, user: int, assignments: Sequence[int], now: float) -> list[int]:
    """Begins the leases of a user's open assignments anew, and returns those that the user still has.

    Those whose task was withdrawn are not among them.
    """
    found = session.scalars(
        sa.select(Assignment)
        .join(Task, Task.id == Assignment.task_id)
        .where(
            Assignment.id.in_(assignments), Assignment.user_id == user, Assignment.finished_at.is_(None),
            Task.kind != "withdrawn",
        )
    ).all()  # fmt: skip
    kept = [row for row in found if holds_place(row, now) or has_place(session, settings, row, now)]
    for row in kept:
        row.lease_until = now + 60 * settings.lease_minutes
    return [row.id for row in kept]


def release(session: Session, user: int, assignments: Sequence[int], now: float) -> None:
    """Gives up a user's open assignments, such as those a page fetched ahead and then was closed."""
    session.execute(
        sa.update(Assignment)
        .where(Assignment.id.in_(assignments), Assignment.user_id == user, Assignment.finished_at.is_(None))
        .where(Assignment.lease_until > now)
        .values(lease_until=now)
    )


def recent(session: Session, user: int, count: int, before: int | None = None) -> list[Assigned]:
    """The user's assignments that have judgements, the latest first, to go back to: those numbered below `before`."""
    judged = sa.exists().where(JudgementRow.assignment_id == Assignment.id)
    found = sa.select(Assignment).where(Assignment.user_id == user, judged)
    if before is not None:
        found = found.where(
            Assignment.number < sa.select(Assignment.number).where(Assignment.id == before).scalar_subquery()
        )
    rows = session.scalars(found.order_by(Assignment.number.desc()).limit(min(count, MOST_AT_ONCE))).all()
    return _shown(session, rows)


def find(session: Session, user: int, assignment: int) -> Assigned | None:
    """An assignment of a user, finished or not; None where the user has none of this id."""
    rows = session.scalars(sa.select(Assignment).where(Assignment.id == assignment, Assignment.user_id == user)).all()
    return next(iter(_shown(session, rows)), None)


def _next(session: Session, settings: Labelling, user: int, now: float) -> Assignment | None:
    """A further task for a user, as a new assignment; None where no normal one is left."""
    normal = _normal(session, settings, user, now)
    if normal is None:
        return None
    number = session.execute(
        sa.select(sa.func.coalesce(sa.func.max(Assignment.number), -1) + 1).where(Assignment.user_id == user)
    ).scalar_one()
    drawn = _random(settings, "kind", user, number).random()
    if drawn < settings.gold_rate:
        gold = _gold(session, settings, user)
        if gold is not None:
            return _assignment(session, settings, user, number, gold, "gold", now)
    elif drawn < settings.gold_rate + settings.repeat_rate:
        earlier = _repeatable(session, settings, user, number)
        if earlier is not None:
            return _repeated(user, number, earlier, now)
    return _assignment(session, settings, user, number, normal, "normal", now)


def _normal(session: Session, settings: Labelling, user: int, now: float) -> int | None:
    had = sa.exists().where(Assignment.task_id == Task.id, Assignment.user_id == user, Assignment.kind == "normal")
    taken = (
        sa.select(sa.func.count())
        .select_from(Assignment)
        .where(Assignment.task_id == Task.id, holding(now))
        .scalar_subquery()
    )
    open_tasks = (
        sa.select(Task.id)
        .where(Task.kind == "normal", Task.finished < settings.overlap, ~had, taken < settings.overlap)
        .order_by(Task.number)
        .limit(1)
    )
    # Tasks that a training run waits for come first. Two questions, each of which an index answers in its order: one
    # for both would look at every task.
    waited_for = session.scalar(open_tasks.where(Task.batch_id.is_not(None)))
    return session.scalar(open_tasks.where(Task.batch_id.is_(None))) if waited_for is None else waited_for


def _gold(session: Session, settings: Labelling, user: int) -> int | None:
    had = sa.exists().where(Assignment.task_id == Task.id, Assignment.user_id == user)
    return session.scalar(sa.select(Task.id).where(Task.kind == "gold", ~had).order_by(Task.number).limit(1))


def _repeatable(session: Session, settings: Labelling, user: int, number: int) -> Assignment | None:
    again = aliased(Assignment)
    repeated = sa.exists().where(again.task_id == Assignment.task_id, again.user_id == user, again.kind == "repeat")
    found = session.scalars(
        sa.select(Assignment)
        .where(
            Assignment.user_id == user, Assignment.kind == "normal", Assignment.finished_at.is_not(None),
            ~Assignment.skipped, Assignment.number < number - REPEAT_AFTER, ~repeated,
        )
        .order_by(Assignment.number)
    ).all()  # fmt: skip
    return _random(settings, "repeat", user, number).choice(found) if found else None


def _assignment(
    session: Session, settings: Labelling, user: int, number: int, task: int, kind: str, now: float
) -> Assignment:
    count = session.execute(sa.select(sa.func.count()).where(TaskImage.task_id == task)).scalar_one()
    rng = _random(settings, "presentation", user, task)
    presentation = rng.sample(range(count), count)
    sides = "".join(rng.choice("01") for _ in range(count * (count - 1) // 2))
    return Assignment(
        task_id=task, user_id=user, number=number, kind=kind, presentation=presentation, sides=sides, created=now,
        lease_until=now, finished_at=None, skipped=False, surplus=False,
    )  # fmt: skip


def _repeated(user: int, number: int, earlier: Assignment, now: float) -> Assignment:
    """The same task in the opposite order, and each two images with their sides swapped."""
    presentation = earlier.presentation[::-1]
    sides = ""
    for j in range(len(presentation)):
        for i in range(j):
            pair = (presentation[i], presentation[j])
            left, _ = left_right(pair, earlier.presentation, earlier.sides)
            sides += "1" if left == presentation[i] else "0"
    return Assignment(
        task_id=earlier.task_id, user_id=user, number=number, kind="repeat", presentation=presentation, sides=sides,
        created=now, lease_until=now, finished_at=None, skipped=False, surplus=False,
    )  # fmt: skip


def _shown(session: Session, rows: Sequence[Assignment]) -> list[Assigned]:
    if not rows:
        return []
    tasks = [row.task_id for row in rows]
    texts = {
        row.id: (row.text, row.question)
        for row in session.execute(
            sa.select(Task.id, Prompt.text, Task.question)
            .join(Prompt, Prompt.id == Task.prompt_id)
            .where(Task.id.in_(tasks))
        )
    }
    images: dict[int, list[str]] = {task: [] for task in tasks}
    for task, sha256 in session.execute(
        sa.select(TaskImage.task_id, TaskImage.sha256)
        .where(TaskImage.task_id.in_(tasks))
        .order_by(TaskImage.task_id, TaskImage.position)
    ):
        images[task].append(sha256)
    judged: dict[int, list[Judgement]] = {row.id: [] for row in rows}
    for row in session.scalars(
        sa.select(JudgementRow).where(JudgementRow.assignment_id.in_(list(judged))).order_by(JudgementRow.id)
    ):
        judged[row.assignment_id].append(from_row(row))
    return [
        Assigned(
            row.id, *texts[row.task_id], tuple(images[row.task_id]), tuple(row.presentation), row.sides,
            tuple(judged[row.id]), row.lease_until,
        )
        for row in rows
    ]  # fmt: skip


def _random(settings: Labelling, *what: str | int) -> random.Random:
    """Random numbers that depend on the project's seed and on what they are for, alone."""
    text = ":".join(map(str, (settings.seed, *what)))
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
