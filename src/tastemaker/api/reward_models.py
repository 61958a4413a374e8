"""`tm.train_reward_model`: a reward model from comparisons of images, as `tastemaker reward train` makes it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tastemaker.cli.folders import next_free, require_unused
from tastemaker.errors import ConfigError, nearest
from tastemaker.reward_models.comparisons import Comparisons, load_several
from tastemaker.reward_models.settings import Training, check
from tastemaker.reward_models.train import Result, Samples
from tastemaker.reward_models.train import train_reward_model as run
from tastemaker.rewards.preferences.architecture import Architecture, Kind


def train_reward_model(
    source: str | Path | Comparisons | Sequence[str | Path],
    kind: Kind = "unet",
    out: str | Path | None = None,
    *,
    resize: bool = False,
    samples: Samples | None = None,
    **settings: Any,
) -> Result:
    """Trains a reward model into a new folder, which `reward=str(result.folder)` of `tm.train` then uses.

    - `source`: a labelling project, a table of pairs or a data set, or `Comparisons` that were loaded or made; of a
      list of projects and tables all comparisons are learned from.
    - `out`: the next free runs/reward-model-<n> where it is None.
    - `resize`: scale images that are not of the model's size. `samples`: by which images rewards are standardised where
      `standardise="samples"`.
    - `settings`: fields of `rewards.preferences.architecture.Architecture` and `reward_models.settings.Training`, such
      as `hidden=64` or `members=3`.

    Prints what the command prints. Raises a TastemakerError, with no folder left behind.
    """
    of_network, of_training = ([field.name for field in dataclasses.fields(cls)] for cls in (Architecture, Training))
    for name in settings:
        if name not in (*of_network, *of_training):
            raise ConfigError(f"unknown setting {name!r} of a reward model; {nearest(name, of_network + of_training)}")
    architecture = Architecture(kind, **{name: settings[name] for name in settings if name in of_network})
    training = Training(**{name: settings[name] for name in settings if name in of_training})
    check(architecture, training)
    folder = require_unused(Path(out) if out is not None else next_free("reward-model"))
    if isinstance(source, Comparisons):
        found = source
    else:
        sources = [source] if isinstance(source, (str, Path)) else list(source)
        if not sources:
            raise ConfigError("the list of sources is empty: give a labelling project or a table of pairs")
        found = load_several([str(one) for one in sources], seed=training.seed)
    command = f"tastemaker.train_reward_model(...) in {sys.argv[0] or 'Python'}"
    log = lambda text: print(text, flush=True)  # noqa: E731
    return run(found, architecture, training, folder, resize=resize, samples=samples, command=command, log=log)
