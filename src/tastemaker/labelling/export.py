"""Exports of a labelling project: all of it, or its preferences in the format of a public data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy.orm import Session

from tastemaker.errors import ConfigError, DataError, nearest
from tastemaker.labelling import native
from tastemaker.labelling.answers import comparisons, read_answers, read_names, read_tasks, that_count
from tastemaker.labelling.formats import CONFLICTS, FORMATS, SPLITS, Answers, Conflicts, Format, Said
from tastemaker.labelling.project import Project
from tastemaker.labelling.table_files import write_array, write_lines, write_parquet
from tastemaker.runs.folders import new_folder

NATIVE = "native"
EXPORTS = (NATIVE, *FORMATS)
"""The formats that a project is exported to."""
Table = Literal["parquet", "jsonl"]


@dataclass(frozen=True)
class ExportOptions:
    """What of a project is exported, and how."""

    labelers: tuple[str, ...] | None = None
    """Names of the labelers whose answers are exported; None takes all."""
    split: str | None = None
    """`train` or `validation`: prompts of one part alone; None takes both."""
    include_surplus: bool = False
    """Answers beyond the overlap too. The native format has them always."""
    pseudonyms: bool = False
    """Codes in place of the labelers' names."""
    conflicts: Conflicts = "all"
    """What becomes of pairs of images on which labelers disagree. `all`: each vote is a row. `majority`: one row for
    what most say, none where as many say the opposite. `unanimous`: one row where nobody says the opposite. The native
    format has always everything."""
    table: Table | None = None
    """Parquet or JSON lines; None takes JSON lines for the native format and Parquet for the others. The formats of
    HPD and ImageReward are JSON."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    folder: Path
    rows: dict[str, int]
    """Rows by file."""
    without_winner: int = 0
    """Comparisons that were left out since they have no winner."""


def export_project(project: Project, out: Path, format: str = NATIVE, options: ExportOptions | None = None) -> Exported:
    """Writes an export into the new folder `out`, which is there when all is written, and not before.

    It is of one moment, while labelling may go on. The same answers give the same bytes. Raises ConfigError for
    options that do not fit, DataError where there is nothing to export or an image is missing, StorageError.
    """
    options = options or ExportOptions()
    _check(format, options)
    if options.table == "parquet" or (options.table is None and format in FORMATS and FORMATS[format].tabular):
        from tastemaker.labelling.table_files import pyarrow_parquet

        pyarrow_parquet()  # before anything is read
    with project.database.read() as session:
        users = _users(session, project, options)
        if format == NATIVE:
            with new_folder(out) as folder:
                rows = native.write(session, project, folder, options.split, users, options.table or "jsonl")
            return Exported(out, rows)
        answers, without = read_said(session, project, options, users)
    found = FORMATS[format].rows(answers)
    if not any(found.values()):
        raise DataError(
            f"there is nothing to export from {project.folder}: no complete task of the selection has two images of "
            "which one is preferred"
        )
    with new_folder(out) as folder:
        rows = {
            _write(project, folder, FORMATS[format], split, found[split], options): len(found[split])
            for split in SPLITS
            if found[split]
        }
    return Exported(out, rows, without)


def read_said(session: Session, project: Project, options: ExportOptions, users: dict[int, str]) -> tuple[Answers, int]:
    """The answers of the chosen labelers by task number and name, and how many comparisons have no winner."""
    tasks = read_tasks(session, options.split)
    said = [
        Said(tasks[answer.task], users[answer.user], tuple(comparisons(project.settings, answer)))
        for answer in that_count(read_answers(session, project.settings, set(users)), options.include_surplus)
        if answer.task in tasks and tasks[answer.task].kind == "normal"
    ]
    said.sort(key=lambda one: (one.task.number, one.labeler))
    without = sum(len(one.comparisons) - len(one.decided) for one in said)
    return Answers(tuple(said), options.conflicts), without


def pseudonym(project: str, user: int) -> str:
    """A labeler's code, the same in all exports of a project."""
    return "labeler-" + hashlib.sha256(f"{project}:{user}".encode()).hexdigest()[:12]


def _users(session: Session, project: Project, options: ExportOptions) -> dict[int, str]:
    """The shown names of the chosen labelers by id. Raises ConfigError for names that are unknown."""
    names = read_names(session)
    known = list(names.values())
    for name in options.labelers or ():
        if name not in known:
            raise ConfigError(f"the project has no labeler {name!r}; {nearest(name, known)}")
    chosen = {user: name for user, name in names.items() if options.labelers is None or name in options.labelers}
    return {user: pseudonym(project.uuid, user) for user in chosen} if options.pseudonyms else chosen


def _check(format: str, options: ExportOptions) -> None:
    if format not in EXPORTS:
        raise ConfigError(f"the format {format!r} is unknown; {nearest(format, EXPORTS)}")
    if options.split not in (None, *SPLITS):
        raise ConfigError(f"the split is {options.split!r}, but must be train or validation")
    if options.conflicts not in CONFLICTS:
        raise ConfigError(f"conflicts is {options.conflicts!r}; {nearest(options.conflicts, CONFLICTS)}")
    if options.table not in (None, "parquet", "jsonl"):
        raise ConfigError(f"the table is {options.table!r}, but must be parquet or jsonl")
    if options.table is not None and format != NATIVE and not FORMATS[format].tabular:
        raise ConfigError(f"the format {format} is JSON: leave the table out")


def _write(project: Project, folder: Path, format: Format, split: str, rows: Sequence, options: ExportOptions) -> str:
    """Writes a part of the split, and returns the name of its file."""
    name = format.files[split]
    if not format.tabular:
        into = format.folders[split]
        write_array(folder / name, rows, project.folder, folder / into, "" if format.bare else f"{into}/")
        return name
    if options.table == "jsonl":
        write_lines(folder / f"{name}.jsonl", rows, project.folder)
        return f"{name}.jsonl"
    write_parquet(folder / f"{name}.parquet", format.columns, rows, project.folder)
    return f"{name}.parquet"
