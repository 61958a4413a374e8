"""Which preset or file a command's arguments name, and the settings that they change in it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tastemaker.cli.arguments import choose, flag_types, parse, split_assignments
from tastemaker.cli.text import decoded, is_undecoded
from tastemaker.config.presets import PRESETS
from tastemaker.config.reflection import require_finite
from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError, nearest


class Args(Protocol):
    """What a command on a run's settings takes, besides what is its own."""

    @property
    def preset(self) -> str | None: ...

    @property
    def settings(self) -> Config: ...


T = TypeVar("T", bound=Args)


def read(cls: type[T], argv: list[str], command: str) -> tuple[T, str]:
    """The arguments `cls` of a command, and the name of the preset or file. Raises ConfigError for wrong arguments.

    `--pairs` is short for `--pairs.sources`.
    """
    make: Any = cls
    argv = [re.sub(r"^--pairs(?==|$)", "--pairs.sources", word) for word in argv]
    split = split_assignments(argv, flag_types(cls))
    preset, file = _named(split)
    if preset and file:
        raise ConfigError("give a preset or --config, not both; a file may name its preset by `preset: NAME`")
    _, base = choose(split, _base(preset, file))
    # Once more, now that it is known which algorithm's flags are meant: two may share a name and not a type.
    default = make(settings=base)
    rest, _ = choose(split_assignments(argv, flag_types(cls, default=default)), base)
    args = parse(cls, rest, command, default)
    if args.preset != preset:
        raise ConfigError(f"unexpected {args.preset!r}; {nearest(str(args.preset), list(PRESETS))}")
    if not preset and not file:
        raise ConfigError("give a preset (`tastemaker ls presets`) or --config FILE")
    require_finite(args.settings)
    changed: Any = args
    if any(map(is_undecoded, argv)):
        args = replace(changed, settings=decoded(args.settings))
    return args, preset or Path(file or "").stem


def _named(argv: list[str]) -> tuple[str | None, str | None]:
    """Preset and file among the arguments, needed before the flags can be read over their values."""
    preset = argv[0] if argv and not argv[0].startswith("-") else None
    file = None
    for before, word in zip(["", *argv], argv, strict=False):
        if before == "--config":
            file = word
        elif word.startswith("--config="):
            file = word.partition("=")[2]
        elif word in PRESETS and before != "--out":
            preset = preset or word
    return preset, file


def _base(preset: str | None, file: str | None) -> Config:
    if file is not None:
        from tastemaker.config.yaml_file import load_config

        return load_config(Path(file), Config())
    if preset is None:
        return Config()
    if preset not in PRESETS:
        hint = nearest(preset, list(PRESETS))
        if re.search(r"\.ya?ml$", preset):
            hint = f"a file is given as `--config {preset}`"
        raise ConfigError(f"unknown preset {preset!r}; {hint}")
    return PRESETS[preset].config
