"""Images of a training run that waits for what labelers say of them: their tasks come first, and become rewards.

The rewards of images lie in [0, 1]: the mean over the task's labelers of thumbs up (rate), of being the best (best), or
of the share of the other images that an image is preferred to, ties counting half (pair, rank).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from PIL import Image
from sqlalchemy.orm import Session

from tastemaker.errors import DataError, RewardError
from tastemaker.labelling import ranking
from tastemaker.labelling.image_files import ImageFile, store_image
from tastemaker.labelling.judgements import from_row
from tastemaker.labelling.project import NewImage, NewTask, Project, insert_tasks
from tastemaker.labelling.ranking import Judgement, State
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Assignment, Batch, JudgementRow, Task
from tastemaker.rewards.labelers.settings import task_sizes


@dataclass(frozen=True)
class BatchState:
    """How far the labelling of a batch is."""

    key: str
    state: Literal["waiting", "finished", "withdrawn"]
    tasks: int
    labelled: int
    """Tasks with as many labelers as the project's overlap."""
    rewards: tuple[float, ...] | None = None
    """By image, in the order in which they were sent; None before all tasks are labelled."""


@dataclass(frozen=True)
class BatchSummary:
    """A batch in a list."""

    key: str
    state: Literal["waiting", "finished", "withdrawn"]
    tasks: int
    labelled: int
    """Tasks with as many labelers as the project's overlap."""
    created: float
    """When it was sent first; seconds since 1970-01-01 UTC."""


def grouped(settings: Labelling, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """The tasks of a batch, each as the indices of its images, which have one prompt.

    Raises DataError where the images of a prompt cannot be put into tasks.
    """
    same: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        same.setdefault(prompt, []).append(index)
    tasks: list[tuple[int, ...]] = []
    for prompt, indices in same.items():
        try:
            sizes = task_sizes(settings.mode, settings.task_size, len(indices))
        except RewardError as error:
            shown = prompt if len(prompt) <= 60 else prompt[:57] + "..."
            raise DataError(f"{error} (the prompt {shown!r}; in a run, sampling.per_prompt)") from None
        start = 0
        for size in sizes:
            tasks.append(tuple(indices[start : start + size]))
            start += size
    return tasks


def key_of(prompts: Sequence[str], images: Sequence[Image.Image]) -> str:
    """The key of a batch: the SHA-256 of its prompts and pixels. What is sent twice has one key."""
    digest = hashlib.sha256()
    for prompt, image in zip(prompts, images, strict=True):
        digest.update(hashlib.sha256(prompt.encode()).digest())
        digest.update(f"{image.width}x{image.height}".encode())
        digest.update(hashlib.sha256(image.convert("RGB").tobytes()).digest())
    return digest.hexdigest()


def submit(project: Project, prompts: Sequence[str], images: Sequence[Image.Image], now: float) -> BatchState:
    """Adds a batch's tasks, unless they are there: a batch is known by its content. One that was withdrawn is asked for
    again.

    Raises DataError where the images of a prompt cannot be put into tasks, StorageError.
    """
    tasks, key = grouped(project.settings, prompts), key_of(prompts, images)
    with project.database.read() as session:
        known = session.scalar(sa.select(Batch.id).where(Batch.key == key)) is not None
    files: list[ImageFile] = []
    if not known:
        # The files first: what the database names is there.
        files = [store_image(project.folder, image, f"image {index}") for index, image in enumerate(images)]
    with project.database.write() as session:
        found = session.scalar(sa.select(Batch).where(Batch.key == key))
        if found is None:
            found = _insert(session, project.settings, key, prompts, files, tasks, now)
        else:
            session.execute(
                sa.update(Task).where(Task.batch_id == found.id, Task.kind == "withdrawn").values(kind="normal")
            )
        return _state(session, project.settings, found)


def look_up(session: Session, settings: Labelling, key: str) -> BatchState | None:
    """How far a batch is; None where there is none of this key."""
    found = session.scalar(sa.select(Batch).where(Batch.key == key))
    return None if found is None else _state(session, settings, found)


def summaries(session: Session, settings: Labelling) -> list[BatchSummary]:
    """All batches of a project, the latest first."""
    rows = session.execute(
        sa.select(
            Batch.key,
            Batch.created,
            sa.func.count(Task.id),
            sa.func.count(sa.case((Task.finished >= settings.overlap, 1))),
            sa.func.count(sa.case((Task.kind == "withdrawn", 1))),
        )
        .join(Task, Task.batch_id == Batch.id)
        .group_by(Batch.id, Batch.key, Batch.created)
        .order_by(Batch.id.desc())
    )
    return [
        BatchSummary(
            key, "withdrawn" if gone else "waiting" if labelled < tasks else "finished", tasks, labelled, created
        )
        for key, created, tasks, labelled, gone in rows
    ]


def withdraw(session: Session, settings: Labelling, key: str) -> BatchState | None:
    """Asks no labeler any more for what is missing of a batch; None where there is none of this key.

    What labelers have said stays, and so does a batch that is finished.
    """
    found = session.scalar(sa.select(Batch).where(Batch.key == key))
    if found is None:
        return None
    session.execute(
        sa.update(Task)
        .where(Task.batch_id == found.id, Task.kind == "normal", Task.finished < settings.overlap)
        .values(kind="withdrawn")
    )
    return _state(session, settings, found)


def image_rewards(settings: Labelling, presentation: Sequence[int], found: State) -> list[float]:
    """What one labeler's complete task says of its images, by position, in [0, 1]. See the module."""
    count = len(presentation)
    if settings.mode == "rate":
        return [float(found.ratings[image] == "up") for image in range(count)]
    if settings.mode == "best":
        return [float(found.best == image) for image in range(count)]
    points = [0.0] * count
    for a, b, outcome in ranking.implied(settings, presentation, found):
        points[a] += {"a": 1.0, "b": 0.0}.get(outcome, 0.5)
        points[b] += {"a": 0.0, "b": 1.0}.get(outcome, 0.5)
    return [value / (count - 1) for value in points]


def _insert(
    session: Session, settings: Labelling, key: str, prompts: Sequence[str], files: Sequence[ImageFile],
    tasks: Sequence[Sequence[int]], now: float,
) -> Batch:  # fmt: skip
    row = Batch(key=key, prompts=list(prompts), images=[file.sha256 for file in files], created=now)
    session.add(row)
    session.flush()
    name = f"batch {key[:12]}"
    new = [
        (
            NewTask(prompts[task[0]], [NewImage(None, name, {"batch": key, "index": index}) for index in task]),
            [files[index] for index in task],
        )
        for task in tasks
    ]
    insert_tasks(session, settings, new, row.id)
    return row


def _state(session: Session, settings: Labelling, batch: Batch) -> BatchState:
    rows = session.execute(
        sa.select(Task.id, Task.kind, Task.finished).where(Task.batch_id == batch.id).order_by(Task.number)
    ).all()
    labelled = sum(row.finished >= settings.overlap for row in rows)
    if any(row.kind == "withdrawn" for row in rows):
        return BatchState(batch.key, "withdrawn", len(rows), labelled)
    if labelled < len(rows):
        return BatchState(batch.key, "waiting", len(rows), labelled)
    # Tasks were added in the order in which `grouped` makes them, from settings that do not change.
    tasks = grouped(settings, batch.prompts)
    said = _said(session, settings, [row.id for row in rows])
    rewards = [0.0] * len(batch.prompts)
    for row, indices in zip(rows, tasks, strict=True):
        labelers = said[row.id]
        for position, index in enumerate(indices):
            rewards[index] = sum(values[position] for values in labelers) / len(labelers)
    return BatchState(batch.key, "finished", len(rows), labelled, tuple(rewards))


def _said(session: Session, settings: Labelling, tasks: Sequence[int]) -> dict[int, list[list[float]]]:
    """`image_rewards` of each labeler who counts, by task, in an order that does not depend on who came first."""
    assigned = session.scalars(
        sa.select(Assignment).where(
            Assignment.task_id.in_(tasks), Assignment.kind == "normal", Assignment.finished_at.is_not(None),
            ~Assignment.skipped, ~Assignment.surplus,
        )
    ).all()  # fmt: skip
    judged: dict[int, list[Judgement]] = {row.id: [] for row in assigned}
    for row in session.scalars(
        sa.select(JudgementRow).where(JudgementRow.assignment_id.in_(list(judged))).order_by(JudgementRow.id)
    ):
        judged[row.assignment_id].append(from_row(row))
    found: dict[int, list[list[float]]] = {task: [] for task in tasks}
    for row in assigned:
        state = ranking.state(settings, row.presentation, judged[row.id])
        found[row.task_id].append(image_rewards(settings, row.presentation, state))
    return {task: sorted(values) for task, values in found.items()}
