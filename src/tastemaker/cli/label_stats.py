"""`tastemaker label stats`: progress of a project, and how its labelers label and agree."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tastemaker.cli.arguments import parse
from tastemaker.errors import ConfigError
from tastemaker.printing import print_lines

if TYPE_CHECKING:
    from tastemaker.labelling.agreement import Share
    from tastemaker.labelling.statistics import Statistics


@dataclass(frozen=True)
class StatsArgs:
    """Shows how far a labelling project is, its pace, and how each labeler labels and agrees with the others."""

    project: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="PROJECT", help_behavior_hint="")] = (
        None
    )
    """Folder of the project."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print everything as JSON."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(StatsArgs, argv, "label stats")
    if args.project is None:
        raise ConfigError("give the folder of a project, as in `tastemaker label stats labels/animals`")
    from tastemaker.labelling.project import open_project
    from tastemaker.labelling.statistics import statistics, to_json

    with open_project(args.project) as project, project.database.read() as session:
        found = statistics(session, project.settings, time.time())
    if args.json:
        print_lines(json.dumps(to_json(found), indent=1))
        return 0
    for line in _summary(found):
        print_lines(line)
    if found.labelers:
        _print_table(found)
    return 0


def _summary(found: Statistics) -> list[str]:
    progress = found.progress
    lines = [
        f"{progress.tasks_done} of {progress.tasks} tasks done, {progress.answers} of {progress.answers_wanted} "
        f"answers; {progress.votes} votes, {progress.skipped} skipped, {progress.surplus} surplus"
    ]
    if progress.per_hour is not None and progress.hours_left:
        lines.append(f"{progress.per_hour:.0f} answers in the last hour: {progress.hours_left:.1f} hours are left")
    alpha = found.alpha
    if alpha is None:
        lines.append("agreement: not known before two labelers have answered the same tasks")
    else:
        lines.append(
            f"agreement: Krippendorff's alpha {alpha.value:.2f} (95 % {alpha.low:.2f} to {alpha.high:.2f}) on "
            f"{alpha.units} comparisons, choices or ratings of {alpha.tasks} tasks"
        )
    if any(found.marks.values()):
        lines.append("marks: " + ", ".join(f"{mark} {count}" for mark, count in found.marks.items()))
    return lines


def _print_table(found: Statistics) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(caption="shares in %, with 95 % intervals")
    table.add_column("labeler")
    for name in ("answers", "votes", "s/vote", "left", "ties", "skips", "same again", "gold right", "differs"):
        table.add_column(name, justify="right")
    for one in found.labelers:
        seconds = "" if one.median_seconds is None else f"{one.median_seconds:.1f}"
        shares = (one.left, one.ties, one.skips, one.consistency, one.gold, one.disagreement)
        table.add_row(one.name, str(one.answers), str(one.votes), seconds, *map(_percent, shares))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140, markup=False).print(table)


def _percent(share: Share) -> str:
    if share.value is None or share.low is None or share.high is None:
        return ""
    return f"{100 * share.value:.0f} ({100 * share.low:.0f}-{100 * share.high:.0f})"
