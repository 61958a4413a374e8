"""`tastemaker compare serve`: the labelling app of a comparison."""

from __future__ import annotations

from tastemaker.cli.arguments import flag_types, parse, split_assignments
from tastemaker.cli.label_serve import ServeArgs, serve
from tastemaker.errors import ConfigError


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(ServeArgs, split_assignments(argv, flag_types(ServeArgs)), "compare serve")
    if args.project is None:
        raise ConfigError("give the folder of a comparison, as in `tastemaker compare serve labels/study`")
    from tastemaker.human_evaluation.study import read_study

    read_study(args.project)
    return serve(args.project, args)
