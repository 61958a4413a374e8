"""How far a labeler and a project are: what the labelling page shows."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Assignment, Task


@dataclass(frozen=True)
class Progress:
    """Counts of tasks."""

    done: int
    """The user's complete assignments."""
    available: int
    """Those, the user's open ones, and the tasks that the user could still get now."""
    tasks: int
    """The project's, without gold and withdrawn ones."""
    tasks_done: int
    """Those of them that have as many labelers as the overlap asks for."""


def finished_tasks(session: Session, settings: Labelling) -> tuple[int, int]:
    """How many of a project's tasks have as many labelers as the overlap asks for, and how many there are.

    Gold and withdrawn tasks are not counted.
    """
    tasks, done = session.execute(
        sa.select(sa.func.count(), sa.func.count(sa.case((Task.finished >= settings.overlap, 1)))).where(
            Task.kind == "normal"
        )
    ).one()
    return done, tasks


def progress_of(session: Session, settings: Labelling, user: int, now: float) -> Progress:
    """How far a user and the project are."""
    normal = Task.kind == "normal"
    done_tasks, tasks = finished_tasks(session, settings)
    done = session.execute(
        sa.select(sa.func.count()).where(Assignment.user_id == user, Assignment.finished_at.is_not(None))
    ).scalar_one()
    mine_open = session.execute(
        sa.select(sa.func.count())
        .select_from(Assignment)
        .join(Task, Task.id == Assignment.task_id)
        .where(
            Assignment.user_id == user, Assignment.finished_at.is_(None), Assignment.lease_until > now,
            Task.kind != "withdrawn",
        )
    ).scalar_one()  # fmt: skip
    # `Task.finished` counts the complete assignments; besides them, those hold a place whose lease runs.
    leased = (
        sa.select(Assignment.task_id, sa.func.count().label("count"))
        .where(
            Assignment.kind == "normal", Assignment.finished_at.is_(None), Assignment.lease_until > now,
            ~Assignment.surplus, Assignment.user_id != user,
        )
        .group_by(Assignment.task_id)
        .subquery()
    )  # fmt: skip
    held = sa.exists().where(
        Assignment.task_id == Task.id, Assignment.user_id == user, Assignment.kind == "normal",
        sa.or_(Assignment.finished_at.is_not(None), Assignment.lease_until > now),
    )  # fmt: skip
    further = session.execute(
        sa.select(sa.func.count())
        .select_from(Task)
        .outerjoin(leased, leased.c.task_id == Task.id)
        .where(normal, ~held, Task.finished + sa.func.coalesce(leased.c.count, 0) < settings.overlap)
    ).scalar_one()
    return Progress(done, done + mine_open + further, tasks, done_tasks)
