"""What came from what: which policy made the images, which labels trained a reward model, which of these a policy."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tastemaker.errors import ConfigError
from tastemaker.models.adapter_files import find_adapter
from tastemaker.rewards.preferences.files import WEIGHTS
from tastemaker.rewards.preferences.files import read as read_reward_model
from tastemaker.runs import atomic

FILE = "lineage.json"


@dataclass(frozen=True)
class Record:
    """One iteration; what is None has not been done yet. Paths are relative to the folder of all iterations."""

    number: int
    """From 1."""
    policy: str | None = None
    """The run whose adapter made the images; None for the base model."""
    policy_sha256: str | None = None
    """Of that adapter's file."""
    mixed: bool = False
    """Whether the policies before it and the base model made images of each task too."""
    labels: str | None = None
    """The labelling project, once it is labelled."""
    labels_sha256: str | None = None
    """Of its prompts, images and labels, as the reward model learned from them."""
    tasks: int | None = None
    """Labelled tasks."""
    pairs: int | None = None
    """Pairs of images that were compared in them, ties included."""
    reward_model: str | None = None
    reward_model_sha256: str | None = None
    """Of its weights."""
    learned_from: tuple[str, ...] = ()
    """`labels_sha256` of all projects that the reward model, or without one the policy, learned from."""
    accuracy: dict[str, Any] | None = None
    """On the validation part: value, low, high, count."""
    run: str | None = None
    """The alignment, once it has ended."""
    run_sha256: str | None = None
    """Of the adapter that it left."""


def read(folder: Path) -> list[Record]:
    """All iterations so far; none where nothing was recorded. Raises ConfigError for a file that is damaged."""
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [replace(Record(**one), learned_from=tuple(one["learned_from"])) for one in content["iterations"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}: {error}): restore it from a copy") from error


def write(folder: Path, records: list[Record]) -> None:
    """Puts the file in its place in one go."""
    content = json.dumps({"iterations": [asdict(one) for one in records]}, indent=1)
    atomic.replace_atomic(folder / FILE, content.encode() + b"\n")


def adapter_digest(run: Path) -> str:
    """SHA-256 of what a run trained. Raises ConfigError where it left nothing."""
    found = find_adapter(run)
    files = sorted(found.glob("*.safetensors")) if found.is_dir() else [found]
    return _digest(*files)


def reward_model_digest(folder: Path) -> str:
    """SHA-256 of a reward model's weights. Raises RewardError where it is damaged, ConfigError where it is gone."""
    read_reward_model(folder)
    return _digest(folder / WEIGHTS)


def require_unchanged(folder: Path, records: list[Record]) -> None:
    """Raises ConfigError where what an iteration left is not what it recorded, since later ones come from it."""
    for one in records:
        for what, name, expected, digest in (
            ("reward model", one.reward_model, one.reward_model_sha256, reward_model_digest),
            ("adapter of the run", one.run, one.run_sha256, adapter_digest),
        ):
            if name is not None and digest(folder / name) != expected:
                raise ConfigError(
                    f"the {what} {folder / name} is not the one that iteration {one.number} left there: restore it, or "
                    "begin again in another folder"
                )


def _digest(*files: Path) -> str:
    found = hashlib.sha256()
    for file in files:
        try:
            found.update(file.read_bytes())
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error
    return found.hexdigest()
