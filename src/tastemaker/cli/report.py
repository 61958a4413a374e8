"""`tastemaker report`: one run's report, or several runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tastemaker.cli.arguments import parse
from tastemaker.cli.folders import require_run
from tastemaker.errors import ConfigError
from tastemaker.printing import print_lines


@dataclass(frozen=True)
class ReportArgs:
    """Writes the HTML report of a run into its folder, or one file that compares several runs."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...", help_behavior_hint="")] = ()
    """Folders of runs."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: comparison.html)")] = None
    """File of the comparison."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(ReportArgs, argv, "report")
    if not args.runs:
        raise ConfigError("give the folder of a run, as in `tastemaker report runs/ddpo-compressibility-1`")
    if len(args.runs) == 1 and args.out is not None:
        raise ConfigError("--out is for a comparison of several runs: one run's report is written into its folder")
    runs = [require_run(folder) for folder in args.runs]
    from tastemaker.report.page import compare_report, write_report

    print_lines(write_report(runs[0]) if len(runs) == 1 else compare_report(runs, args.out or Path("comparison.html")))
    return 0
