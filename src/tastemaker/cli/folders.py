"""Run folders, as the commands name, find and refuse them."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tastemaker.errors import ConfigError, nearest
from tastemaker.process_count import process_count
from tastemaker.runs.folders import check_new_folder

if TYPE_CHECKING:
    from tastemaker.config.schema import Config

RUNS = Path("runs")


def next_free(stem: str, *, agreed: bool = False) -> Path:
    """The first of runs/<stem>-1, runs/<stem>-2, ... that does not exist.

    Raises ConfigError in one of several processes, unless they will agree on the first one's (`agreed`).
    """
    if process_count() > 1 and not agreed:
        raise ConfigError("several processes run together, and each would choose its own folder: give --out DIR")
    return next(path for n in itertools.count(1) if not (path := RUNS / f"{stem}-{n}").exists())


def require_unused(out: Path) -> Path:
    """`out`, if it is new or an empty folder and can be written. Raises ConfigError otherwise, before torch loads."""
    # Under torchrun the first process may already have written here when a later one looks.
    if os.environ.get("RANK", "0") != "0":
        return out
    if is_run(out):
        raise ConfigError(f"{out} holds a run: go on with it by `tastemaker resume {out}`, or give another --out")
    check_new_folder(out)
    return out


def is_run(path: Path) -> bool:
    """Whether a run has been started in this folder."""
    return os.path.isfile(path / "config.yaml")  # Path.is_file raises for names that are too long


def run_config(adapter: Path) -> Config | None:
    """The settings of the run that is given, or in which the given adapter lies; None elsewhere."""
    # Here, since most commands do without, and their --help is to be quick.
    from tastemaker.config.schema import Config
    from tastemaker.config.yaml_file import load_config

    base = adapter.parent if adapter.is_file() else adapter
    for folder in (base, base.parent):
        if is_run(folder):
            return load_config(folder / "config.yaml", Config())
    return None


def require_run(path: Path) -> Path:
    """`path`, if a run has been started there. Raises ConfigError with the nearest run otherwise."""
    if is_run(path):
        return path
    runs = [str(run) for run in sorted(RUNS.glob("*")) if is_run(run)]
    hint = f"; {nearest(str(path), runs)}" if runs else "; start one with `tastemaker train`"
    reason = "has no config.yaml, so it is not a run" if os.path.exists(path) else "does not exist"
    raise ConfigError(f"{path} {reason}{hint}")
