"""Projects and labelers for the tests, made directly in the database."""

from __future__ import annotations

import io
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tastemaker.labelling import ranking
from tastemaker.labelling.assignments import Assigned
from tastemaker.labelling.project import NewImage, NewTask, Project, add_tasks, create_project
from tastemaker.labelling.ranking import Judgement
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import User


def png(number: int, side: int = 8) -> bytes:
    """A small image file, another one for each number."""
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def project_of(folder: Path, database: str | None, tasks: int, settings: Labelling | None = None) -> Project:
    """A project with so many tasks, all with different images."""
    settings = settings or Labelling()
    project = create_project(folder, settings, database)
    size = settings.task_size
    new = [
        NewTask(f"prompt {task}", [NewImage(png(task * size + image)) for image in range(size)])
        for task in range(tasks)
    ]
    add_tasks(project, new)
    return project


def labelers(project: Project, count: int) -> list[int]:
    """New users of a project."""
    with project.database.write() as session:
        users = [User(name=f"labeler {i}", role="labeler", created=0.0) for i in range(count)]
        session.add_all(users)
        session.flush()
        return [user.id for user in users]


def answers(settings: Labelling, assigned: Assigned, best_first: Sequence[int] | None = None) -> list[Judgement]:
    """Judgements that complete a task for who likes its images in this order (of their positions)."""
    liked = list(range(len(assigned.images))) if best_first is None else list(best_first)
    made: list[Judgement] = []
    while True:
        now = ranking.state(settings, assigned.presentation, [*assigned.judgements, *made])
        if now.complete:
            return made
        name = str(uuid.uuid4())
        if settings.mode == "best":
            made.append(Judgement(name, "best", image=liked[0]))
        elif settings.mode == "rate":
            image = next(i for i in assigned.presentation if i not in now.ratings)
            made.append(Judgement(name, "rate", image=image, outcome="up" if image == liked[0] else "down"))
        elif now.question is not None:
            left, right = ranking.left_right(now.question, assigned.presentation, assigned.sides)
            better = "left" if liked.index(left) < liked.index(right) else "right"
            made.append(Judgement(name, "compare", left=left, right=right, outcome=better))
        else:
            made.append(Judgement(name, "order", order=now.order, confirmed=True))
