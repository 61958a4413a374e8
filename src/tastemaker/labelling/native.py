"""The native export: every row of a project's tables and its images, of which an import makes an equal project.

What lets people log in is left out: passwords, sessions and invitations. `copying` copies those too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session

from tastemaker.errors import ConfigError, DataError
from tastemaker.labelling.image_files import image_path
from tastemaker.labelling.places import counts
from tastemaker.labelling.project import Project
from tastemaker.labelling.settings import Labelling, from_json, to_json
from tastemaker.labelling.table_files import (
    Column,
    Kind,
    copy_images,
    read_image_file,
    read_rows,
    write_lines,
    write_parquet,
)  # fmt: skip
from tastemaker.labelling.tables import Assignment, Base, ProjectRow
from tastemaker.runs import atomic

NAME = "export.json"
"""The file that makes a folder a native export."""
FORMAT = 1
TABLES = ("prompt", "image", "user_account", "batch", "task", "task_image", "assignment", "judgement")
"""The tables of an export, each after those that it refers to."""
_SECRET = {"user_account": ("password_hash",)}


def write(
    session: Session, project: Project, folder: Path, split: str | None, users: Mapping[int, str], table: str
) -> dict[str, int]:
    """Writes the tables and images into a folder; returns the rows by file. `users` has the names by the ids of the
    chosen labelers. Raises DataError, StorageError."""
    rows = {name: list(_rows(session, name)) for name in TABLES}
    if not rows["task"]:
        raise DataError(f"{project.folder} has no tasks: there is nothing to export")
    _select(rows, split, users)
    written = {}
    for name, listed in rows.items():
        file = f"{name}.{table}"
        if table == "parquet":
            write_parquet(folder / file, _columns(name), listed, project.folder)
        else:
            write_lines(folder / file, listed, project.folder)
        written[file] = len(listed)
    copy_images(project.folder, [row["sha256"] for row in rows["image"]], folder)
    found = session.get(ProjectRow, 1)
    assert found is not None
    content = {
        "format": FORMAT, "uuid": project.uuid, "created": found.created, "settings": to_json(project.settings),
        "tables": {file: count for file, count in written.items()},
    }  # fmt: skip
    # Last, so that a folder is an export only when all of it is there.
    atomic.write(folder / NAME, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())
    return written


def read_settings(folder: Path) -> tuple[str, float, Labelling]:
    """The UUID, the time of creation and the settings of an exported project. Raises ConfigError, DataError."""
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        form, uuid, created, settings = (content[name] for name in ("format", "uuid", "created", "settings"))
    except FileNotFoundError as error:
        raise DataError(f"{folder} is no native export: it has no {NAME}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder / NAME} cannot be read: {type(error).__name__}: {error}") from error
    if form != FORMAT:
        raise ConfigError(f"{folder} has format {form!r}, but this version of tastemaker reads format {FORMAT}")
    return str(uuid), float(created), from_json(settings)


def read_into(session: Session, folder: Path, target: Path) -> dict[str, int]:
    """Adds the rows of an export to the empty tables of a project, and its images to its folder `target`.

    Returns the rows by table. Raises DataError, StorageError.
    """
    added = {}
    for name in TABLES:
        rows = (
            [_restored(name, row, where) for where, row in read_rows(_file(folder, name))] if _has(folder, name) else []
        )
        if name == "image":
            for row in rows:
                _check_image(folder, row["sha256"])
            copy_images(folder, [row["sha256"] for row in rows], target)
        try:
            if rows:
                session.execute(sa.insert(Base.metadata.tables[name]), rows)
        except StatementError as error:  # a value of a wrong type, or a row that others lack
            raise DataError(
                f"the table {name} in {folder} cannot be imported: {' '.join(str(error.orig).split())}"
            ) from error
        added[name] = len(rows)
    return added


def _select(rows: dict[str, list[dict[str, Any]]], split: str | None, users: Mapping[int, str]) -> None:
    """Leaves the chosen labelers and prompts in the tables, and what belongs to them."""
    everybody = {row["id"] for row in rows["user_account"]}
    for row in rows["user_account"]:
        row["name"] = users.get(row["id"], row["name"])
    if split is not None:
        _keep(rows, "prompt", "split", {split})
        _keep(rows, "task", "prompt_id", {row["id"] for row in rows["prompt"]})
        _keep(rows, "task_image", "task_id", {row["id"] for row in rows["task"]})
        _keep(rows, "image", "sha256", {row["sha256"] for row in rows["task_image"]})
        _keep(rows, "assignment", "task_id", {row["id"] for row in rows["task"]})
        _keep(rows, "batch", "id", {row["batch_id"] for row in rows["task"]})
    if everybody != set(users):
        _keep(rows, "user_account", "id", set(users))
        _keep(rows, "assignment", "user_id", set(users))
    _keep(rows, "judgement", "assignment_id", {row["id"] for row in rows["assignment"]})
    done: dict[int, int] = {}
    for row in rows["assignment"]:
        done[row["task_id"]] = done.get(row["task_id"], 0) + counts(_assignment(row))
    for row in rows["task"]:
        row["finished"] = done.get(row["id"], 0)


def _assignment(row: Mapping[str, Any]) -> Assignment:
    return Assignment(**{name: row[name] for name in ("kind", "finished_at", "skipped", "surplus")})


def _keep(rows: dict[str, list[dict[str, Any]]], table: str, column: str, values: set[Any]) -> None:
    rows[table] = [row for row in rows[table] if row[column] in values]


def _rows(session: Session, name: str) -> Iterator[dict[str, Any]]:
    table = Base.metadata.tables[name]
    columns = [column for column in table.columns if column.name not in _SECRET.get(name, ())]
    for row in session.execute(sa.select(*columns).order_by(*table.primary_key.columns)):
        yield dict(row._mapping)


def _columns(name: str) -> list[Column]:
    table = Base.metadata.tables[name]
    return [Column(column.name, _kind(column)) for column in table.columns if column.name not in _SECRET.get(name, ())]


def _kind(column: sa.Column[Any]) -> Kind:
    kinds: dict[type, Kind] = {
        sa.JSON: "json", sa.Boolean: "bool", sa.Float: "float64", sa.Integer: "int64", sa.String: "string",
    }  # fmt: skip
    return next(kind for base, kind in kinds.items() if isinstance(column.type, base))


def _restored(name: str, row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row as its table takes it. Raises DataError where a column is missing."""
    found: dict[str, Any] = {}
    for column in Base.metadata.tables[name].columns:
        if column.name in _SECRET.get(name, ()):
            found[column.name] = None
            continue
        if column.name not in row:
            raise DataError(f"{where}: no column {column.name}; it has {', '.join(row)[:300]}")
        value = row[column.name]
        if isinstance(value, str) and isinstance(column.type, sa.JSON):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise DataError(f"{where}: {column.name} is no JSON ({error})") from error
        found[column.name] = value
    return found


def _file(folder: Path, name: str) -> Path:
    lines = folder / f"{name}.jsonl"
    return lines if lines.is_file() else folder / f"{name}.parquet"


def _has(folder: Path, name: str) -> bool:
    path = _file(folder, name)
    if not path.is_file():
        raise DataError(f"the export {folder} has no {name}.jsonl or {name}.parquet: copy the whole folder")
    return path.suffix == ".parquet" or path.stat().st_size > 0


def _check_image(folder: Path, name: str) -> None:
    try:
        path = image_path(folder, name)
    except (ValueError, TypeError) as error:
        raise DataError(f"the table image in {folder} has a name that is no SHA-256: {name!r}") from error
    if not path.is_file():
        raise DataError(f"the export {folder} lacks the image {path.name}: copy the whole folder")
    read_image_file(folder, name)
