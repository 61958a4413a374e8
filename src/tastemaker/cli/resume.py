"""`tastemaker resume`: goes on with a run from its last checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from tastemaker.cli.arguments import parse
from tastemaker.cli.folders import require_run
from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError


@dataclass(frozen=True)
class ResumeArgs:
    """Goes on with a run from its last checkpoint, as if it had never stopped."""

    folder: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = None
    """The run's folder."""
    rounds: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: the run's own)")] = None
    """New total number of rounds, those already done included."""
    allow_inexact: bool = False
    """Go on although settings, versions, hardware or the number of processes have changed."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything and print what the whole run does, without going on with it."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(ResumeArgs, argv, "resume")
    if args.folder is None:
        raise ConfigError("give the folder of a run, as in `tastemaker resume runs/ddpo-compressibility-1`")
    if args.rounds is not None and args.rounds < 1:
        raise ConfigError(f"--rounds is {args.rounds}, but must be greater than 0")
    folder = require_run(args.folder)
    if args.dry_run:
        from tastemaker.cli.train import dry_run
        from tastemaker.config.yaml_file import load_config
        from tastemaker.runs.checkpoint import saved_round

        config = load_config(folder / "config.yaml", Config())
        done = saved_round(folder)
        if done < 0:
            raise ConfigError(f"{folder} has no checkpoint to go on from")
        if args.rounds is not None and done > args.rounds:
            raise ConfigError(f"{folder} has done {done} rounds already: give a larger --rounds than {args.rounds}")
        print(f"saved up to round {done}; the whole run:")
        return dry_run(config if args.rounds is None else replace(config, rounds=args.rounds), folder)
    from tastemaker.training.run import resume

    resume(folder, args.rounds, allow_inexact=args.allow_inexact)
    return 0
