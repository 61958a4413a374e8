"""`tastemaker train`: a preset or a file, changed by flags, becomes a run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tastemaker.cli.arguments import flag_types, parse, split_assignments
from tastemaker.cli.folders import next_free, require_unused
from tastemaker.errors import ConfigError, nearest
from tastemaker.training.config import Config
from tastemaker.training.presets import PRESETS
from tastemaker.training.reflection import require_finite


@dataclass(frozen=True)
class TrainArgs:
    """Trains a model to a reward, starting from a preset or a file.

    The defaults shown are those of the preset or file named before --help. Settings can also be written as
    in `optimizer.lr=1e-4`. Precedence: preset, then file, then flags.
    """

    preset: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[PRESET]", help_behavior_hint="")] = None
    """A name from `tastemaker ls presets`."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A YAML file instead of a preset; it may name a preset by `preset: NAME`."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/<name>-<n>)")] = None
    """Folder of the run; <name> is the preset's or the file's."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def run(words: list[str]) -> int:
    """Runs the verb."""
    args, stem = read(words)
    out = require_unused(args.out or next_free(stem))
    from tastemaker.training.run import train

    train(args.settings, out, command=shlex.join(["tastemaker", "train", *words]))
    return 0


def read(words: list[str]) -> tuple[TrainArgs, str]:
    """The arguments, and the name from which the run's folder takes its own."""
    words = split_assignments(words, flag_types(TrainArgs))
    preset, file = _named(words)
    if preset and file:
        raise ConfigError("give a preset or --config, not both; a file may name its preset by `preset: NAME`")
    default = TrainArgs(settings=_base(preset, file))
    args = parse(TrainArgs, words, "train", default)
    if args.preset != preset:
        raise ConfigError(f"unexpected {args.preset!r}; {nearest(str(args.preset), list(PRESETS))}")
    if not preset and not file:
        raise ConfigError("give a preset (`tastemaker ls presets`) or --config FILE")
    require_finite(args.settings)
    return args, preset or Path(file or "").stem


def _named(words: list[str]) -> tuple[str | None, str | None]:
    """Preset and file among the words, needed before the flags can be read over their values."""
    preset = words[0] if words and not words[0].startswith("-") else None
    file = None
    for before, word in zip(["", *words], words, strict=False):
        if before == "--config":
            file = word
        elif word.startswith("--config="):
            file = word.partition("=")[2]
        elif word in PRESETS and before != "--out":
            preset = preset or word
    return preset, file


def _base(preset: str | None, file: str | None) -> Config:
    if file is not None:
        from tastemaker.training.configfile import load_config

        return load_config(Path(file), Config())
    if preset is None:
        return Config()
    if preset not in PRESETS:
        hint = nearest(preset, list(PRESETS))
        if re.search(r"\.ya?ml$", preset):
            hint = f"a file is given as `--config {preset}`"
        raise ConfigError(f"unknown preset {preset!r}; {hint}")
    return PRESETS[preset].config
