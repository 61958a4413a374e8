"""Labelling projects for tests: small images, users, and labelers with a known utility."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from PIL import Image

from tastemaker.labelling.assignments import Assigned, claim
from tastemaker.labelling.judgements import Receipt, save
from tastemaker.labelling.project import NewImage, NewTask, Project, add_tasks, create_project
from tastemaker.labelling.ranking import Judgement, left_right, state
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import User


def image(value: int) -> Image.Image:
    """A small image that is different for each value."""
    return Image.new("RGB", (8, 8), (value % 256, value // 256 % 256, value // 65536))


def make_project(folder: Path, settings: Labelling, tasks: int = 4, database: str | None = None) -> Project:
    """A project whose task n has the prompt `prompt n` and images of its own."""
    project = create_project(folder, settings, database)
    add_tasks(project, [new_task(settings, number) for number in range(tasks)])
    return project


def new_task(settings: Labelling, number: int, **fields) -> NewTask:
    """A task for a project with these settings."""
    images = [NewImage(image(100 * number + index), f"model {index}") for index in range(settings.task_size)]
    return NewTask(f"prompt {number}", images, **fields)


def add_user(project: Project, name: str, role: str = "labeler") -> int:
    """A user who can log in by no password."""
    with project.database.write() as session:
        user = User(name=name, role=role, password_hash=None, disabled=False, keys={}, created=0.0)
        session.add(user)
        session.flush()
        return user.id


def claimed(project: Project, user: int, count: int, now: float) -> list[Assigned]:
    """`claim` in a transaction of its own."""
    with project.database.write() as session:
        return claim(session, project.settings, user, count, now)


def saved(project: Project, user: int, assignment: int, judgement: Judgement, now: float) -> Receipt:
    """`save` of one judgement in a transaction of its own."""
    with project.database.write() as session:
        return save(session, project.settings, user, [(assignment, judgement)], now)[0]


def judged(
    project: Project, user: int, assigned: Assigned, now: float, utility: Callable[[int], float] = lambda image: -image
) -> list[Judgement]:
    """Labels a task to its end by a utility of the positions, and returns the judgements."""
    log = list(assigned.judgements)
    while not (found := state(project.settings, assigned.presentation, log)).complete:
        judgement = _next(project.settings, assigned, found, utility)
        receipt = saved(project, user, assigned.id, judgement, now)
        assert receipt.status == "saved", receipt
        log.append(judgement)
    return log


def _next(settings: Labelling, assigned: Assigned, found, utility: Callable[[int], float]) -> Judgement:
    if settings.mode == "best":
        return Judgement(str(uuid.uuid4()), "best", image=max(assigned.presentation, key=utility))
    if settings.mode == "rate":
        image = next(image for image in assigned.presentation if image not in found.ratings)
        return Judgement(str(uuid.uuid4()), "rate", image=image, outcome="up" if utility(image) > 0 else "down")
    if found.question is None:
        return Judgement(str(uuid.uuid4()), "order", order=found.order, confirmed=True)
    left, right = left_right(found.question, assigned.presentation, assigned.sides)
    one, two = utility(left), utility(right)
    outcome = "tie" if one == two else "left" if one > two else "right"
    return Judgement(str(uuid.uuid4()), "compare", left, right, outcome)


def rows(project: Project, query: sa.Select) -> list:
    """What a query of one column finds."""
    with project.database.read() as session:
        return list(session.scalars(query))
