"""Imports into a labelling project: an export of another, preferences of public data sets, and gold tasks."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tastemaker.data.pairs import IMAGES, MARKS, VERDICTS, preferred
from tastemaker.data.tables import TEXT, shown, text_column
from tastemaker.errors import ConfigError, DataError, nearest
from tastemaker.labelling import database as db
from tastemaker.labelling import native
from tastemaker.labelling.export import NATIVE
from tastemaker.labelling.formats import FORMATS, Format, Gathered, GivenTask
from tastemaker.labelling.image_files import ImageFile, store_image
from tastemaker.labelling.judgements import to_row
from tastemaker.labelling.project import (
    MAX_PROMPT,
    NewImage,
    NewTask,
    Project,
    add_tasks,
    create_project,
    insert_tasks,
    is_project,
    open_project,
)  # fmt: skip
from tastemaker.labelling.ranking import Judgement, Order, refusal, state
from tastemaker.labelling.settings import MAX_IMAGES, Labelling, to_json
from tastemaker.labelling.table_files import read_rows
from tastemaker.labelling.tables import Assignment, ProjectRow, Task, User
from tastemaker.runs.folders import new_folder

GOLD = "gold"
IMPORTS = (NATIVE, *FORMATS, GOLD)
"""The formats that are imported."""
_ENDINGS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_PARTS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "validation",
}


@dataclass(frozen=True)
class Imported:
    """What an import added."""

    tasks: int
    answers: int
    labelers: int
    """Labelers that the project did not have before."""


def import_labels(
    folder: Path, source: Path, format: str, settings: Labelling | None = None, database: str | None = None
) -> Imported:
    """Imports a file or folder into the project in `folder`, which is made where it is not there.

    `native`: only into a new project, which then equals the exported one but for what lets people log in. `gold`: gold
    tasks of two images, with the columns of docs/guides/tables.md's pairs, into a project that is there. Others: each
    task with the answers of each labeler, who becomes a user that cannot log in; a user of the same name is the same
    labeler. A new project has the mode pair where all tasks have two images, and else rank, unless `settings` say
    otherwise. All is imported, or nothing. `database` is for a new project, as in `create_project`. Raises ConfigError,
    DataError, StorageError.
    """
    if format not in IMPORTS:
        raise ConfigError(f"the format {format!r} is unknown; {nearest(format, IMPORTS)}")
    if not os.path.exists(source):
        raise DataError(f"there is no file or folder {shown(source)}")
    there = is_project(folder)
    if there and database is not None:
        raise ConfigError(f"{folder} is a project already, which has its database: leave the database out")
    if there and settings is not None:
        raise ConfigError(f"{folder} is a project already, which has its settings: leave them out")
    if format == NATIVE:
        if there:
            raise ConfigError(f"a native export becomes a new project, but {folder} is one already: give a new folder")
        return _native(folder, source, settings, database)
    if format == GOLD:
        if not there:
            raise ConfigError(f"gold tasks are added to a project, but {folder} is none: create it first")
        with open_project(folder) as project:
            return _gold(project, source)
    if there:
        with open_project(folder) as project:
            return _preferences(project, *_gathered(project.folder, source, FORMATS[format]))
    with _new_project(folder, settings or Labelling(), database) as project:
        tasks, files = _gathered(project.folder, source, FORMATS[format])
        if settings is None:
            project = replace(project, settings=_settings(tasks))
            with project.database.write() as session:
                session.execute(sa.update(ProjectRow).values(settings=to_json(project.settings)))
        return _preferences(project, tasks, files)


# ---------------------------------------------------------------- native


def _native(folder: Path, source: Path, settings: Labelling | None, database: str | None) -> Imported:
    if settings is not None:
        raise ConfigError("a native export has its own settings: leave them out")
    name, created, exported = native.read_settings(source)
    with _new_project(folder, exported, database, name) as project, project.database.write() as session:
        session.execute(sa.update(ProjectRow).values(created=created))
        added = native.read_into(session, source, project.folder)
        db.restart_keys(session)
    return Imported(added["task"], added["assignment"], added["user_account"])


# ---------------------------------------------------------------- gold tasks


def _gold(project: Project, source: Path) -> Imported:
    tasks = []
    for file in _files(source, None):
        rows = read_rows(file)
        for where, row in rows:
            text = text_column(list(row), where)
            images = next((names for names in IMAGES if all(name in row for name in names)), None)
            verdict = next((names for names in VERDICTS if all(name in row for name in names)), None)
            if images is None or verdict is None:
                raise DataError(
                    f"{where}: a gold task has {' or '.join(TEXT)}, image_0, image_1 and preferred (0, 1 or tie), but "
                    f"the columns are {', '.join(row)[:300]}"
                )
            better = preferred({name: row[name] for name in (*verdict, *MARKS) if name in row}, where)
            found = [_resolved(row[name], file, source) for name in images]
            new = [
                NewImage(value, str(row.get(f"model_{side}") or ""), {}, f"{where}, {name}")
                for side, (value, name) in enumerate(zip(found, images, strict=True))
            ]
            tasks.append(NewTask(row[text], new, [(0, 1, "tie" if better is None else "ab"[better])]))
    if not tasks:
        raise DataError(f"{source} has no rows")
    return Imported(add_tasks(project, tasks), 0, 0)


# ---------------------------------------------------------------- preferences


def _gathered(folder: Path, source: Path, format: Format) -> tuple[list[GivenTask], dict[str, ImageFile]]:
    """The tasks in a file or folder, whose images are stored in a project's folder, and those files by hash."""
    found, stored = Gathered(), {}
    for file in _files(source, format):
        format.read(read_rows(file), _part(file), _storing(folder, file, source, format, stored), found)
    if not found.tasks:
        raise DataError(f"{source} has no rows with preferences")
    return found.tasks, stored


def _storing(
    folder: Path, file: Path, source: Path, format: Format, stored: dict[str, ImageFile]
) -> Callable[[Any, str], str]:
    known: dict[str, str] = {}

    def store(value: Any, where: str) -> str:
        if isinstance(value, str) and value in known:
            return known[value]
        new = store_image(folder, _resolved(value, file, source, *format.folders.values()), where, file.parent)
        stored[new.sha256] = new
        if isinstance(value, str):
            known[value] = new.sha256
        return new.sha256

    return store


def _resolved(value: Any, file: Path, source: Path, *folders: str) -> Any:
    """The path that a table means: one beside it or in the folder of the data set, or in a folder of its images."""
    if not isinstance(value, str) or "://" in value:
        return value
    root = source if source.is_dir() else file.parent
    name = value.replace("\\", "/")
    bases = [file.parent, root, *(base / folder for folder in folders for base in (file.parent, root))]
    candidates = [base / name for base in bases] + [file.parent / Path(name).name]
    return next((path for path in candidates if os.path.isfile(path)), value)


def _files(source: Path, format: Format | None) -> list[Path]:
    """The tables of a data set: the file itself, or those of a folder, train before validation."""
    if source.is_file():
        return [source]
    found = [
        path
        for path in sorted(source.rglob("*"))
        if path.is_file() and path.suffix.lower() in _ENDINGS and not path.name.startswith(".")
    ]
    if format is not None:
        found = [path for path in found if path.name.lower().startswith(tuple(_PARTS))]
    if not found:
        wanted = "a table" if format is None else f"a table named {' or '.join(format.files.values())}"
        raise DataError(f"the folder {source} has no {wanted.removeprefix('a ')}")
    return sorted(found, key=lambda path: (_part(path) or "", str(path)))


def _part(path: Path) -> str | None:
    return next((part for name, part in _PARTS.items() if path.name.lower().startswith(name)), None)


def _settings(tasks: Sequence[GivenTask]) -> Labelling:
    """The settings of a new project for given tasks."""
    most = max(len(task.images) for task in tasks)
    if most > MAX_IMAGES:
        raise DataError(f"a task has {most} images, but may have {MAX_IMAGES}")
    overlap = max(len(task.orders) for task in tasks)
    return Labelling(mode="pair" if most == 2 else "rank", images=most, overlap=overlap)


def _preferences(project: Project, tasks: Sequence[GivenTask], files: dict[str, ImageFile]) -> Imported:
    _check(project.settings, tasks)
    now = time.time()
    new = []
    for task in tasks:
        images = [NewImage(None, image.model, {}, task.where) for image in task.images]
        new.append((NewTask(task.prompt, images, split=task.split), [files[image.sha256] for image in task.images]))
    with project.database.write() as session:
        before = session.execute(sa.select(sa.func.coalesce(sa.func.max(Task.number), -1))).scalar_one()
        insert_tasks(session, project.settings, new, None)
        keys = session.scalars(sa.select(Task.id).where(Task.number > before).order_by(Task.number)).all()
        users, added = _labelers(session, tasks, now)
        numbers = {
            user: session.execute(
                sa.select(sa.func.coalesce(sa.func.max(Assignment.number), -1)).where(Assignment.user_id == user)
            ).scalar_one()
            for user in users.values()
        }
        for key, task in zip(keys, tasks, strict=True):
            for labeler, order in task.orders.items():
                user = users[labeler]
                numbers[user] += 1
                _answer(session, project.settings, key, user, numbers[user], order, task, now)
            session.execute(sa.update(Task).where(Task.id == key).values(finished=len(task.orders)))
    return Imported(len(tasks), sum(len(task.orders) for task in tasks), added)


def _check(settings: Labelling, tasks: Sequence[GivenTask]) -> None:
    if settings.mode not in ("pair", "rank"):
        raise ConfigError(
            f"the data has comparisons, and a project of mode {settings.mode} takes none: import into one of mode pair "
            "or rank"
        )
    for task in tasks:
        if len(task.prompt) > MAX_PROMPT:
            raise DataError(f"{task.where}: the prompt has {len(task.prompt)} characters, but may have {MAX_PROMPT}")
        if settings.mode == "pair" and len(task.images) != 2:
            raise ConfigError(
                f"{task.where}: the task has {len(task.images)} images, but the project is of mode pair: import into "
                "one of mode rank"
            )
        if len(task.images) > MAX_IMAGES:
            raise DataError(f"{task.where}: the task has {len(task.images)} images, but may have {MAX_IMAGES}")
        if len(task.orders) > settings.overlap:
            raise ConfigError(
                f"{task.where}: {len(task.orders)} labelers have answered the task, but the project's overlap is "
                f"{settings.overlap}: raise the overlap first"
            )
        if not settings.ties and any(len(group) > 1 for order in task.orders.values() for group in order):
            raise DataError(f"{task.where}: images are equally good, but the project has no ties")


def _labelers(session: Session, tasks: Sequence[GivenTask], now: float) -> tuple[dict[str, int], int]:
    """The ids of the users of all labelers by name, and how many are new."""
    known = {row.name: row.id for row in session.execute(sa.select(User.id, User.name))}
    added = 0
    for name in sorted({name for task in tasks for name in task.orders}):
        if not 0 < len(name) <= 100:
            raise DataError(f"the labeler {shown(name)!r} must have a name of 1 to 100 characters")
        if name not in known:
            user = User(name=name, role="labeler", password_hash=None, disabled=True, keys={}, created=now)
            session.add(user)
            session.flush()
            known[name] = user.id
            added += 1
    return known, added


def _answer(
    session: Session,
    settings: Labelling,
    task: int,
    user: int,
    number: int,
    order: Order,
    given: GivenTask,
    now: float,
) -> None:
    count = len(given.images)
    presentation = list(range(count))
    row = Assignment(
        task_id=task, user_id=user, number=number, kind="normal", presentation=presentation,
        sides="0" * (count * (count - 1) // 2), created=now, lease_until=now, finished_at=now, skipped=False,
        surplus=False,
    )  # fmt: skip
    session.add(row)
    session.flush()
    log: list[Judgement] = []
    for judgement in _judgements(settings, presentation, order):
        reason = refusal(settings, presentation, log, judgement)
        if reason is not None:
            raise DataError(f"{given.where}: the answer does not fit the project: {reason}")
        log.append(judgement)
    if not state(settings, presentation, log).complete:
        raise DataError(f"{given.where}: the answer does not order all images of the task")
    session.add_all([to_row(judgement, row.id, now) for judgement in log])
    session.flush()


def _judgements(settings: Labelling, presentation: Sequence[int], order: Order) -> Iterator[Judgement]:
    """Judgements that say an order: a comparison for a pair; for a ranking the order, after all comparisons where the
    project asks for them."""
    rank = {image: level for level, group in enumerate(order) for image in group}
    if settings.mode == "pair" or not settings.transitive:
        for later, b in enumerate(presentation):
            for a in presentation[:later]:
                outcome = "tie" if rank[a] == rank[b] else "left" if rank[a] < rank[b] else "right"
                yield Judgement(str(uuid.uuid4()), "compare", a, b, outcome)
    if settings.mode == "rank" and (settings.transitive or settings.reviewed):
        yield Judgement(str(uuid.uuid4()), "order", order=order, confirmed=True)


# ---------------------------------------------------------------- new projects


@contextmanager
def _new_project(
    folder: Path, settings: Labelling, database: str | None, copy_of: str | None = None
) -> Iterator[Project]:
    """A new project, which is in its place when the block ends well."""
    with new_folder(folder) as temporary, create_project(temporary, settings, database, copy_of) as project:
        try:
            yield project
        except BaseException:
            if database is not None:  # which the folder's removal leaves as it is
                db.downgrade(project.database, "base")
            raise
