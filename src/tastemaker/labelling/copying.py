"""Backups of a labelling project: a copy of one moment while people label, and the way from SQLite to PostgreSQL and
back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tastemaker.errors import ConfigError
from tastemaker.labelling import database as db
from tastemaker.labelling.project import COMPARISON, Project, create_project
from tastemaker.labelling.table_files import copy_images
from tastemaker.labelling.tables import Base, ImageRow, LoginSession, ProjectRow
from tastemaker.runs import atomic
from tastemaker.runs.folders import new_folder

ROWS_AT_ONCE = 1000
_LEFT_OUT = (ProjectRow.__tablename__, LoginSession.__tablename__)
"""The project's row is made anew, and browsers log in again."""


@dataclass(frozen=True)
class Copied:
    """What a copy has."""

    folder: Path
    rows: dict[str, int]
    """Rows by table."""
    images: int
    seconds: float


def copy_project(project: Project, folder: Path, database: str | None = None) -> Copied:
    """Copies a project into the new folder `folder`, with SQLite, or PostgreSQL where `database` is the URL of an empty
    database.

    The rows are those of one moment, however much is labelled meanwhile; images are never changed, and those of these
    rows are copied and checked by their hashes. Users can log in to the copy as before, with invitations that were
    open. It has the same UUID. The folder is there when all is copied, and not before. Raises ConfigError, DataError,
    StorageError.
    """
    began = time.monotonic()
    if folder.resolve().is_relative_to(project.folder.resolve()):
        raise ConfigError(f"{folder} is within the project {project.folder}: give a folder elsewhere")
    with project.database.read() as source:
        found = source.execute(sa.select(ProjectRow)).scalar_one()  # the reading's moment
        with (
            new_folder(folder) as temporary,
            create_project(temporary, project.settings, database, project.uuid) as copy,
        ):
            try:
                with copy.database.write() as target:
                    target.execute(sa.update(ProjectRow).values(settings=found.settings, created=found.created))
                    rows = {
                        table.name: _copy(source, target, table)
                        for table in Base.metadata.sorted_tables
                        if table.name not in _LEFT_OUT
                    }
                    db.restart_keys(target)
                images = list(source.scalars(sa.select(ImageRow.sha256).order_by(ImageRow.sha256)))
                copy_images(project.folder, images, temporary)
                if (project.folder / COMPARISON).is_file():
                    atomic.write(temporary / COMPARISON, (project.folder / COMPARISON).read_bytes())
            except BaseException:
                if database is not None:  # which the folder's removal leaves as it is
                    db.downgrade(copy.database, "base")
                raise
    return Copied(folder, rows, len(images), time.monotonic() - began)


def _copy(source: Session, target: Session, table: sa.Table) -> int:
    """Copies the rows of a table, and returns how many."""
    count = 0
    for chunk in _chunks(source, table):
        target.execute(sa.insert(table), chunk)
        count += len(chunk)
    return count


def _chunks(source: Session, table: sa.Table) -> Iterator[list[dict[str, Any]]]:
    query = sa.select(table).order_by(*table.primary_key.columns)
    found = source.execute(query, execution_options={"yield_per": ROWS_AT_ONCE})
    for rows in found.partitions():
        yield [dict(row._mapping) for row in rows]
