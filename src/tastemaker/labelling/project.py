"""A labelling project: a folder with the images, and a database with everything else."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tastemaker.data.tables import checked_text
from tastemaker.errors import ConfigError, DataError, StorageError
from tastemaker.labelling import database as db
from tastemaker.labelling.image_files import ImageFile, store_image
from tastemaker.labelling.settings import MAX_QUESTION, Labelling, from_json, to_json
from tastemaker.labelling.tables import ImageRow, ProjectRow, Prompt, Task, TaskImage
from tastemaker.runs.atomic import replace_atomic

DESCRIPTION = "project.json"
"""The file that makes a folder a labelling project."""
FORMAT = 1
COMPARISON = "comparison.json"
"""In the folder of a blind comparison of models: which model made which image. The server does not read it."""
DATABASE_ENV = "TASTEMAKER_LABEL_DATABASE"
"""The environment variable that says where the database of projects is that is none of SQLite's."""
MAX_PROMPT = 10_000
"""Most characters of a prompt."""


@dataclass(frozen=True)
class Project:
    """An open labelling project. Close it with `close`, or use it in a `with` statement."""

    folder: Path
    uuid: str
    settings: Labelling
    database: db.Database

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the database."""
        self.database.close()


@dataclass(frozen=True)
class NewImage:
    """An image for a new task."""

    value: Any
    """A path, the bytes of a file, or a PIL image."""
    model: str = ""
    """What made it, as people call it; never shown to labelers."""
    origin: dict[str, Any] = field(default_factory=dict)
    """How it was made; JSON."""
    where: str = "the image"
    """Where it comes from, for messages."""


@dataclass(frozen=True)
class NewTask:
    """A prompt with K images that is to become a task."""

    prompt: str
    images: Sequence[NewImage]
    gold: Sequence[tuple[int, int, str]] | None = None
    """For a gold task the comparisons (a, b, `a` | `b` | `tie`) of two of its images that are known to be right."""
    split: str | None = None
    """`train` or `validation`; None leaves it to the project's `validation` and `seed`."""
    question: str | None = None
    """What is asked of this task; None asks the project's question."""


def is_project(path: Path | str) -> bool:
    """Whether a folder is a labelling project."""
    return os.path.isfile(Path(path).expanduser() / DESCRIPTION)


def create_project(
    folder: Path, settings: Labelling, database: str | None = None, copy_of: str | None = None
) -> Project:
    """A new project without tasks in a folder that is empty or not there.

    `database` is the URL of an empty PostgreSQL database; by default the project has a SQLite file in its folder. A
    password is not written down: PostgreSQL's own PGPASSWORD or password file gives it later. `copy_of` is the UUID of
    the project that this one is to be a copy of. Raises ConfigError, StorageError.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already: give another folder for the new project")
    url = None if database is None else db.parse_url(database)
    if url is not None and url.get_backend_name() == "sqlite":
        raise ConfigError("a SQLite database is always in the project's folder: leave the database out")
    try:
        (folder / "images").mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    opened = db.open_database(database or _sqlite_url(folder))
    try:
        if db.current_revision(opened) is not None:
            raise ConfigError("the database has a labelling project already: give an empty database")
        db.upgrade(opened)
        name = copy_of or str(uuid.uuid4())
        with opened.write() as session:
            session.add(ProjectRow(id=1, uuid=name, settings=to_json(settings), created=time.time()))
        # Last, so that a folder is a project only when all of it is there.
        shown = None if url is None else url.set(password=None).render_as_string()
        content = {"format": FORMAT, "uuid": name, "database": shown}
        replace_atomic(folder / DESCRIPTION, json.dumps(content, indent=2).encode() + b"\n")
    except BaseException:
        opened.close()
        raise
    return Project(folder, name, settings, opened)


def open_project(path: Path | str) -> Project:
    """The project in a folder, its tables brought to this version. Raises ConfigError, StorageError."""
    folder = Path(path).expanduser()
    if not is_project(folder):
        raise ConfigError(
            f"{folder} is no labelling project: it has no {DESCRIPTION} (`tastemaker label create` makes one)"
        )
    try:
        content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        form, name, url = content["format"], content["uuid"], content["database"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{folder / DESCRIPTION} cannot be read: {type(error).__name__}: {error}") from error
    if form != FORMAT:
        raise ConfigError(f"{folder} has format {form!r}, but this version of tastemaker reads format {FORMAT}")
    given = os.environ.get(DATABASE_ENV) if url is not None else None
    if url is None and not (folder / "labels.db").is_file():
        raise ConfigError(f"{folder} has no labels.db: copy the whole folder of the project")
    database = db.open_database(given or url or _sqlite_url(folder))
    try:
        if db.current_revision(database) != db.newest_revision():
            db.upgrade(database)
        with database.read() as session:
            row = session.get(ProjectRow, 1)
            if row is None or row.uuid != name:
                raise ConfigError(
                    f"the database of {folder} has another project: give the right one in ${DATABASE_ENV}"
                )
            settings = from_json(row.settings)
    except BaseException:
        database.close()
        raise
    return Project(folder, name, settings, database)


def change_settings(project: Project, **changes: Any) -> Project:
    """The project with other settings, which are stored. Raises ConfigError.

    The mode, the images of a task, the seed and the split are what judgements were made by, and stay.
    """
    fixed = [name for name in ("mode", "images", "transitive", "seed", "validation") if name in changes]
    if fixed:
        raise ConfigError(f"{fixed[0]} cannot be changed in a project that is there: create another project")
    settings = replace(project.settings, **changes)
    with project.database.write() as session:
        session.execute(sa.update(ProjectRow).values(settings=to_json(settings)))
    return replace(project, settings=settings)


def add_tasks(project: Project, tasks: Iterable[NewTask], batch: int | None = None, compressed: bool = True) -> int:
    """Adds tasks and stores their images; returns how many. All are added, or none.

    Images that are not `compressed` have files of the same size (`store_image`). Raises DataError, StorageError.
    """
    stored = [
        (task, [store_image(project.folder, i.value, i.where, compressed=compressed) for i in task.images])
        for task in map(_checked, tasks)
    ]
    with project.database.write() as session:
        insert_tasks(session, project.settings, stored, batch)
    return len(stored)


def insert_tasks(
    session: Session, settings: Labelling, tasks: Sequence[tuple[NewTask, Sequence[ImageFile]]], batch: int | None
) -> None:
    """Adds the rows of tasks whose image files are stored. `batch` is the run's batch that waits for them."""
    number = session.execute(sa.select(sa.func.coalesce(sa.func.max(Task.number), -1))).scalar_one()
    known = set(session.scalars(sa.select(ImageRow.sha256)))
    for task, files in tasks:
        number += 1
        for file in files:
            if file.sha256 not in known:
                known.add(file.sha256)
                session.add(ImageRow(sha256=file.sha256, width=file.width, height=file.height, size=file.size))
        session.flush()
        row = Task(
            number=number, prompt_id=_prompt_id(session, settings, task), batch_id=batch,
            kind="normal" if task.gold is None else "gold",
            question=task.question,
            gold=None if task.gold is None else [list(answer) for answer in task.gold], finished=0,
        )  # fmt: skip
        session.add(row)
        session.flush()
        for position, (image, file) in enumerate(zip(task.images, files, strict=True)):
            session.add(
                TaskImage(task_id=row.id, position=position, sha256=file.sha256, model=image.model, origin=image.origin)
            )
    session.flush()


def split_of(settings: Labelling, digest: str) -> str:
    """The part of the split that a prompt with this SHA-256 is in, by the project's seed."""
    drawn = hashlib.sha256(f"{settings.seed}:{digest}".encode()).digest()
    share = int.from_bytes(drawn[:8], "big") / 2**64
    return "validation" if share < settings.validation else "train"


def _prompt_id(session: Session, settings: Labelling, task: NewTask) -> int:
    digest = hashlib.sha256(task.prompt.encode()).hexdigest()
    found = session.scalar(sa.select(Prompt).where(Prompt.digest == digest))
    if found is None:
        found = Prompt(text=task.prompt, digest=digest, split=task.split or split_of(settings, digest))
        session.add(found)
        session.flush()
    return found.id


def _checked(task: NewTask) -> NewTask:
    where = task.images[0].where if task.images else "a task"
    if not task.images:
        raise DataError(f"the task {task.prompt[:60]!r} has no images")
    prompt = checked_text(task.prompt, where, "prompt")
    if len(prompt) > MAX_PROMPT:
        raise DataError(f"{where}: the prompt has {len(prompt)} characters, but may have {MAX_PROMPT}")
    if len(task.question or "") > MAX_QUESTION:
        raise DataError(f"{where}: the question has {len(task.question or '')} characters, but may have {MAX_QUESTION}")
    if task.split not in (None, "train", "validation"):
        raise DataError(f"{where}: the split is {task.split!r}, but must be train or validation")
    for answer in task.gold or ():
        a, b, outcome = answer
        if not (0 <= a < len(task.images) and 0 <= b < len(task.images) and a != b and outcome in ("a", "b", "tie")):
            raise DataError(f"{where}: the gold answer {answer} must be two images of the task, and a, b or tie")
    return replace(task, prompt=prompt)


def _sqlite_url(folder: Path) -> str:
    return db.sqlite_url(folder / "labels.db")
