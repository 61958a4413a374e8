"""Names of trained reward models as rewards: a folder, and options after a colon. Free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tastemaker.errors import RewardError, nearest

DESCRIPTION = "reward_model.json"
"""The file that makes a folder a reward model."""
OPTIONS = ("guidance", "penalty", "value", "space")


def is_reward_model(path: Path | str) -> bool:
    """Whether a folder has a reward model."""
    try:
        return (Path(path).expanduser() / DESCRIPTION).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


@dataclass(frozen=True)
class Options:
    """What may follow the folder's name after a colon."""

    guidance: float | None = None
    """s of classifier-free reward guidance; None takes the model's own."""
    penalty: float = 0.0
    """k in mean - k std over an ensemble's members."""
    value: Literal["mean", "std"] = "mean"
    """`std`: the spread of the members in place of the reward."""
    space: Literal["latent", "image"] = "latent"
    """`image`: images are encoded by the model's own VAE, also where their latents are known."""


def folder_of(name: str) -> tuple[Path, str] | None:
    """The folder of a reward model that a reward's name begins with, and the options after it; None for others."""
    if is_reward_model(name):
        return Path(name).expanduser(), ""
    folder, colon, options = name.rpartition(":")
    return (Path(folder).expanduser(), options) if colon and is_reward_model(folder) else None


def parse_options(text: str, name: str) -> Options:
    """Options as in `guidance=2,penalty=0.5`. Raises RewardError for others."""
    found = Options()
    for part in filter(None, text.split(",")):
        key, _, given = part.partition("=")
        if key not in OPTIONS:
            raise RewardError(f"the reward {name} has the option {key!r}; {nearest(key, OPTIONS)}")
        if key in ("value", "space"):
            known = ("mean", "std") if key == "value" else ("latent", "image")
            if given not in known:
                raise RewardError(f"the reward {name} has {key} = {given!r}, but it must be {' or '.join(known)}")
            found = replace(found, **{key: given})
            continue
        try:
            number = float(given)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise RewardError(f"the reward {name} has {key} = {given!r}, but it must be a number")
        found = replace(found, **{key: number})
    return found
