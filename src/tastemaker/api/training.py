"""`tm.train` and `tm.resume`: the runs of the command line, with models, rewards and prompts also as objects."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tastemaker.algorithms.registry import load_algorithm, saved_name
from tastemaker.api.objects import with_objects
from tastemaker.api.runs import Run, load_run
from tastemaker.cli.folders import next_free, require_unused
from tastemaker.config.reflection import require_finite
from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError
from tastemaker.in_memory import PREFIX
from tastemaker.rewards.base import RewardFunction
from tastemaker.training import run as training


def train(
    config: Config,
    model: str | Path | Any | None = None,
    reward: str | RewardFunction | None = None,
    prompts: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    rounds: int | None = None,
) -> Run:
    """Trains a model to a reward, as `tastemaker train` does, and returns the run that it leaves.

    What is None is taken from `config`.

    - `model`: `bundled`, a folder, a hub name, or a loaded pipeline of a class that `models.families.FAMILIES` names. A
      loaded pipeline is copied and stays as it is; what was trained is in `Run.adapter`, for
      `pipeline.load_lora_weights(run.adapter)`.
    - `reward`: a name or an expression as `--reward` takes it, or a function of images [B,3,H,W] in [0,1] and B prompts
      that returns [B] finite numbers. Algorithms that follow the reward's gradient need one that is marked with
      `@tm.reward(differentiable=True)`.
    - `prompts`: a list of texts, or a name, file or template as `--prompts` takes it.
    - `out`: a new folder; the next free runs/<algorithm>-<n> where it is None.
    - `rounds`: in place of `config.rounds`.

    A run with objects is saved under made-up names (`in-memory:...`), and goes on by `tm.resume` alone.

    Prints what the command prints. Ctrl-C, or the stop button of a notebook, lets the round end and saves it; a second
    one stops at once. Both raise `training.signals.Interrupted`, a TastemakerError whose text says how to go on.

    Raises a TastemakerError, with no folder left behind, where a setting, the model, a prompt or the reward is wrong;
    RewardError and DivergedError where the reward fails or the loss is no longer finite later on, when the rounds
    before are saved.
    """
    config, given = with_objects(config, model, reward, prompts)
    if rounds is not None:
        config = replace(config, rounds=rounds)
    require_finite(config)
    load_algorithm(saved_name(type(config.algorithm)))  # or the run could not be read again
    stem = re.sub(r"\W+", "-", config.algorithm.name)
    folder = require_unused(Path(out) if out is not None else next_free(stem, agreed=True))
    command = f"tastemaker.train(...) in {sys.argv[0] or 'Python'}"
    return load_run(training.train(config, folder, command=command, given=given))


def resume(
    run: Run | str | Path,
    rounds: int | None = None,
    *,
    model: Any | None = None,
    reward: RewardFunction | None = None,
    prompts: Sequence[str] | None = None,
    allow_inexact: bool = False,
) -> Run:
    """Goes on with a run from its last checkpoint, to `rounds` rounds in all (its config's when None).

    What the run was given as objects must be passed again: a pipeline with the same weights, a function of the same
    name, and the same prompts in the same order; a reward's code cannot be compared. Raises ConfigError where one is
    missing or another, or where settings, versions or hardware have changed, unless `allow_inexact`; CheckpointError
    where no checkpoint is whole; and what `train` raises.
    """
    folder = run.folder if isinstance(run, Run) else Path(run)
    saved = load_run(folder).config
    named, given = with_objects(saved, model, reward, prompts)
    for setting, passed in {"model": model, "reward": reward, "prompts": prompts}.items():
        _require_same(folder, setting, getattr(saved, setting), None if passed is None else getattr(named, setting))
    if rounds is not None and rounds < 1:
        raise ConfigError(f"rounds is {rounds}, but must be greater than 0")
    training.resume(folder, rounds, allow_inexact=allow_inexact, given=given)
    return load_run(folder)


def _require_same(folder: Path, setting: str, saved: str, passed: str | None) -> None:
    """Raises ConfigError where what was passed for a setting is not what the run was started with."""
    if passed is None and saved.startswith(PREFIX):
        raise ConfigError(f"{folder} was started with the {setting} {saved}, an object: pass it again as {setting}=")
    if passed is not None and passed != saved:
        raise ConfigError(
            f"{folder} was started with the {setting} {saved}, but is given {passed}: pass the same one"
            + ("" if saved.startswith(PREFIX) else f", or leave {setting} out")
        )
