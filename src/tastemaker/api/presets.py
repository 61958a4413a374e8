"""Presets by name, with settings written as on the command line. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from tastemaker.cli.settings import read
from tastemaker.config.presets import PRESETS
from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError, nearest


@dataclass(frozen=True)
class _PresetArgs:
    preset: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[PRESET]")] = None
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def presets() -> list[str]:
    """Names of the presets, as `tastemaker ls presets` prints them."""
    return list(PRESETS)


def preset(name: str, *assignments: str) -> Config:
    """The config of a preset, with settings changed as on the command line.

    `preset("ddpo-compressibility", "optimizer.lr=1e-4", "algorithm=grpo")`. Raises ConfigError for an unknown name or
    setting, or a value that the setting cannot have.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; {nearest(name, list(PRESETS))}")
    for assignment in assignments:
        if assignment.startswith("-") or "=" not in assignment:
            raise ConfigError(f"{assignment!r} is no assignment: write setting=value, as in optimizer.lr=1e-4")
    return read(_PresetArgs, [name, *assignments], "train")[0].settings
