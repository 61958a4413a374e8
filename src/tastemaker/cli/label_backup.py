"""`tastemaker label backup`: a copy of a project while people label, also from SQLite to PostgreSQL and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tastemaker.cli.arguments import parse
from tastemaker.errors import ConfigError
from tastemaker.printing import print_lines


@dataclass(frozen=True)
class BackupArgs:
    """Copies a labelling project as it is at one moment, with its images; labelling may go on meanwhile.

    The copy is a project with the same users. With --database its rows go to PostgreSQL, without it to SQLite.
    """

    project: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="PROJECT", help_behavior_hint="")] = (
        None
    )
    """Folder of the project."""
    out: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """New folder of the copy."""
    database: Annotated[str | None, tyro.conf.arg(metavar="URL", help_behavior_hint="(default: SQLite in DIR)")] = None
    """An empty PostgreSQL database, as postgresql://USER@HOST/NAME."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(BackupArgs, argv, "label backup")
    if args.project is None or args.out is None:
        raise ConfigError(
            "give a project and the folder of its copy, as in `tastemaker label backup labels/animals backups/monday`"
        )
    from tastemaker.labelling.copying import copy_project
    from tastemaker.labelling.project import open_project

    with open_project(args.project) as project:
        done = copy_project(project, args.out, args.database)
    print_lines(
        f"{done.folder}: {done.rows['task']} tasks, {done.rows['judgement']} judgements and {done.images} images in "
        f"{done.seconds:.1f} s"
    )
    return 0
