"""`tastemaker label import`: labels of other projects and data sets, and gold tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tastemaker.cli.arguments import parse
from tastemaker.errors import ConfigError
from tastemaker.printing import print_lines


@dataclass(frozen=True)
class ImportArgs:
    """Imports labels into a labelling project, which is made where it is not there.

    Each labeler of the data becomes a user who cannot log in; answers count as complete. All is imported, or nothing.
    """

    project: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="PROJECT", help_behavior_hint="")] = (
        None
    )
    """Folder of the project."""
    source: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="SOURCE", help_behavior_hint="")] = None
    """A folder that `label export` wrote or of the same form, or one of its tables."""
    format: Annotated[str, tyro.conf.arg(metavar="NAME")] = "native"
    """native, pairs (Pick-a-Pic v2), hpdv2, hpdv3, imagereward, rapidata, open-image-preferences; or gold: a table of
    pairs whose answer is known, by which labelers are checked."""
    database: Annotated[str | None, tyro.conf.arg(metavar="URL", help_behavior_hint="(default: SQLite in PROJECT)")] = (
        None
    )
    """For a new project: an empty PostgreSQL database, as postgresql://USER@HOST/NAME."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(ImportArgs, argv, "label import")
    if args.project is None or args.source is None:
        raise ConfigError(
            "give a project and what to import, as in `tastemaker label import labels/animals gold.csv --format gold`"
        )
    from tastemaker.labelling.imports import import_labels

    done = import_labels(args.project, args.source, args.format, None, args.database)
    print_lines(f"{args.project}: {done.tasks} tasks, {done.answers} answers and {done.labelers} labelers added")
    return 0
