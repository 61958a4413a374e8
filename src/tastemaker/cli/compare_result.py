"""`tastemaker compare result`: what people prefer, with intervals, and whether the study may stop."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tastemaker.cli.arguments import parse
from tastemaker.cli.text import as_text
from tastemaker.errors import ConfigError
from tastemaker.printing import print_lines


@dataclass(frozen=True)
class ResultArgs:
    """Writes the result of a comparison as it stands: tables, figures and a page (docs/guides/comparison.md).

    Labelling may go on meanwhile. Before the study may stop, the result has no prompts and no images.
    """

    project: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="PROJECT", help_behavior_hint="")] = (
        None
    )
    """Folder of the comparison."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: PROJECT-result)")] = None
    """Folder of the result; an earlier result in it is replaced."""
    leave_out: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...", help_behavior_hint="")] = ()
    """Labelers whose answers are left out, such as those who fail at gold tasks."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(ResultArgs, argv, "compare result")
    if args.project is None:
        raise ConfigError("give the folder of a comparison, as in `tastemaker compare result labels/study`")
    from tastemaker.human_evaluation.result import read_result, write_result
    from tastemaker.human_evaluation.tables import ends, percent, status

    found = read_result(args.project, [as_text(name, "--leave-out") for name in args.leave_out])
    out = args.out or args.project.with_name(f"{args.project.resolve().name}-result")
    write_result(found, out, shlex.join(["tastemaker", "compare", "result", *argv]))
    names = [model.name for model in found.study.models]
    for one in found.result.asked:
        for each in one.preferences:
            print_lines(
                f"{found.study.questions[one.question].name}: {names[each.first]} over {names[each.second]} "
                f"{percent(each.rate)} ({ends(each.rate)}); {each.wins} wins, {each.ties} ties, {each.losses} losses; "
                f"{'decided' if each.decided else 'undecided'}"
            )
        for name, best in zip(names, one.best, strict=False):
            print_lines(
                f"{found.study.questions[one.question].name}: {name} best of all {percent(best.share)} "
                f"({ends(best.share)})"
            )
    print_lines(status(found.result))
    print_lines(str(out / "result.html"))
    return 0
