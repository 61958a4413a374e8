"""`tastemaker train`: a preset or a file, changed by flags, becomes a run."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tastemaker.cli.folders import next_free, processes, require_unused
from tastemaker.cli.settings import read
from tastemaker.config.schema import Config


@dataclass(frozen=True)
class TrainArgs:
    """Trains a model to a reward, starting from a preset or a file.

    The defaults shown are those of the preset or file named before --help. Settings can also be written as
    in `optimizer.lr=1e-4`. Another algorithm, window or selection than the preset's is named as in `algorithm=grpo`;
    an algorithm of your own as in `algorithm=mymodule:Mine`.
    Precedence: preset, then file, then flags.
    """

    preset: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[PRESET]", help_behavior_hint="")] = None
    """A name from `tastemaker ls presets`."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A YAML file instead of a preset; it may name a preset by `preset: NAME`."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/<name>-<n>)")] = None
    """Folder of the run; <name> is the preset's or the file's."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything and print what the run would do, without starting it."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def run(argv: list[str]) -> int:
    """Runs the command."""
    args, stem = read(TrainArgs, argv, "train")
    out = require_unused(args.out or next_free(stem, agreed=True))
    if args.dry_run:
        return dry_run(args.settings, out)
    from tastemaker.training.run import train

    train(args.settings, out, command=shlex.join(["tastemaker", "train", *argv]))
    return 0


def dry_run(config: Config, out: Path | None) -> int:
    """Checks a run and prints its plan; of several processes the first one does. Raises a TastemakerError."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    from tastemaker.training.isolation import isolated
    from tastemaker.training.plan import describe, make_plan
    from tastemaker.training.preflight import preflight

    with isolated():
        facts = preflight(config, out, processes())
    print(describe(config, facts, make_plan(config, facts)))
    return 0
