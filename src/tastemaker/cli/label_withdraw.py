"""`tastemaker label withdraw`: asks labelers no more for images of training runs that were given up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tastemaker.cli.arguments import parse
from tastemaker.cli.text import as_text
from tastemaker.errors import ConfigError
from tastemaker.printing import print_lines

if TYPE_CHECKING:
    from tastemaker.labelling.batches import BatchSummary

SHOWN = 12
"""Characters of a key that are shown."""


@dataclass(frozen=True)
class WithdrawArgs:
    """Asks labelers no more for images that training runs have sent (--reward label:PROJECT).

    What labelers have said stays. A run that does wait for the images ends with an error, and asks again when it is
    resumed. The project may be served meanwhile.
    """

    project: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="PROJECT", help_behavior_hint="")] = (
        None
    )
    """Folder of the project."""
    keys: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="KEY", help_behavior_hint="")] = ()
    """Batches, by the first characters of their keys. Without any, those that wait are listed."""
    all: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """All batches that wait for labelers."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(WithdrawArgs, argv, "label withdraw")
    if args.project is None:
        raise ConfigError("give the folder of a project, as in `tastemaker label withdraw labels/live --all`")
    if args.all and args.keys:
        raise ConfigError("give keys or --all, not both")
    from tastemaker.labelling.batches import summaries, withdraw
    from tastemaker.labelling.project import open_project

    with open_project(args.project) as project:
        with project.database.read() as session:
            waiting = [one for one in summaries(session, project.settings) if one.state == "waiting"]
        chosen = waiting if args.all else [_chosen(as_text(key, "KEY"), waiting) for key in args.keys]
        with project.database.write() as session:
            for one in chosen:
                withdraw(session, project.settings, one.key)
    for one in chosen:
        print_lines(f"withdrawn: {_line(one)}")
    if not (args.all or args.keys):
        for one in waiting:
            print_lines(_line(one))
    if not waiting:
        print_lines("no batch waits for labelers")
    return 0


def _chosen(key: str, waiting: list[BatchSummary]) -> BatchSummary:
    """The one batch whose key begins so. Raises ConfigError."""
    found = [one for one in waiting if one.key.startswith(key.lower())]
    if len(found) == 1:
        return found[0]
    count = "no batch that waits has" if not found else f"{len(found)} batches that wait have"
    known = ", ".join(one.key[:SHOWN] for one in waiting) or "none"
    raise ConfigError(f"{count} a key that begins with {key!r}; those that wait: {known}")


def _line(one: BatchSummary) -> str:
    return f"{one.key[:SHOWN]}  {one.labelled} of {one.tasks} tasks labelled"
