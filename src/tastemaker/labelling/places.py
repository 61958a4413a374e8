"""The places of a task: each of its labelers holds one, and it has as many as the project's overlap."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Assignment, Task


def holds_place(row: Assignment, now: float) -> bool:
    """Whether an assignment holds one of its task's places: for the time of its lease, and for good when complete."""
    if row.surplus or row.skipped:
        return False
    return row.finished_at is not None or row.lease_until > now


def holding(now: float) -> sa.ColumnElement[bool]:
    """`holds_place` in SQL, of the assignments whose places are counted."""
    return sa.and_(
        Assignment.kind == "normal", ~Assignment.surplus, ~Assignment.skipped,
        sa.or_(Assignment.finished_at.is_not(None), Assignment.lease_until > now),
    )  # fmt: skip


def has_place(session: Session, settings: Labelling, row: Assignment, now: float) -> bool:
    """Whether there is a place for an assignment beside those that others hold.

    Gold and repeated tasks always have one.
    """
    if row.kind != "normal":
        return True
    taken = session.execute(
        sa.select(sa.func.count())
        .select_from(Assignment)
        .where(Assignment.task_id == row.task_id, Assignment.id != row.id, holding(now))
    ).scalar_one()
    return taken < settings.overlap


def counts(row: Assignment) -> int:
    """1 where an assignment counts for its task's overlap, else 0."""
    return int(row.kind == "normal" and row.finished_at is not None and not row.skipped and not row.surplus)


def withdrawn(session: Session, row: Assignment) -> bool:
    """Whether the task of an assignment is no longer asked for."""
    return session.execute(sa.select(Task.kind).where(Task.id == row.task_id)).scalar_one() == "withdrawn"
