"""A reward model on disk: model.safetensors with what was trained, and reward_model.json with everything else.

Both are checked bit for bit when they are read: the JSON by a hash of itself, the weights by a hash in the JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from tastemaker.errors import ConfigError, RewardError
from tastemaker.rewards.preferences.architecture import Architecture, from_json, to_json
from tastemaker.rewards.preferences.model import Scale
from tastemaker.rewards.preferences.names import DESCRIPTION

WEIGHTS = "model.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Description:
    """What reward_model.json says, save for the hashes."""

    architecture: Architecture
    fingerprint: dict[str, str]
    """SHA-256 of the base model's weights by part (`Backbone.fingerprint`)."""
    shape: tuple[int, ...] | None
    """Of one input: a latent's; None for images of any size."""
    scale: Scale
    guidance: float = 1.0
    text_dropout: float = 0.0
    """Share of the tasks whose prompt was left out in training; without any, the prompt cannot be guided by."""
    training: dict[str, Any] = field(default_factory=dict)
    """How it was trained, on what, and how well it predicts: for people and reports."""


def files(description: Description, heads: list[dict[str, Tensor]]) -> dict[str, bytes]:
    """The two files, by name. `heads` are the state dicts of the members."""
    tensors = {
        f"{member}.{name}": value.detach().cpu().float().contiguous()
        for member, head in enumerate(heads)
        for name, value in head.items()
    }
    weights = save(tensors)
    content = {
        "format": FORMAT,
        "architecture": to_json(description.architecture),
        "fingerprint": description.fingerprint,
        "shape": None if description.shape is None else list(description.shape),
        "scale": asdict(description.scale),
        "guidance": description.guidance,
        "text_dropout": description.text_dropout,
        "training": description.training,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    content["sha256"] = _own(content)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    return {WEIGHTS: weights, DESCRIPTION: text.encode()}


def read(folder: Path) -> tuple[Description, list[dict[str, Tensor]]]:
    """The description and the members' state dicts. Raises RewardError where a file is missing or damaged."""
    description, expected = read_description(folder)
    path = folder / WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RewardError(f"the reward model {folder} lacks {WEIGHTS}: {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise RewardError(
            f"{path} is damaged: its SHA-256 is another than in {DESCRIPTION}; copy the folder again, or train again"
        )
    heads: list[dict[str, Tensor]] = [{} for _ in description.scale.members]
    for name, value in load(data).items():
        member, _, own = name.partition(".")
        heads[int(member)][own] = value
    return description, heads


def read_description(folder: Path) -> tuple[Description, str]:
    """What reward_model.json says, and the SHA-256 that the weights must have. Raises RewardError."""
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        form, given = content.get("format"), content.pop("sha256", None)
    except (OSError, ValueError, RecursionError) as error:
        raise RewardError(f"{path} is damaged, or no reward model's: {error}") from error
    if form != FORMAT:
        raise RewardError(f"{path} has format {form!r}, but this version of tastemaker reads format {FORMAT}")
    if given != _own(content):
        raise RewardError(f"{path} is not what was written: restore it, or train the reward model again")
    try:
        scale = content["scale"]
        members = tuple((float(mean), float(std)) for mean, std in scale["members"])
        found = Description(
            from_json(content["architecture"]), dict(content["fingerprint"]),
            None if content["shape"] is None else tuple(content["shape"]),
            Scale(members, float(scale["mean"]), float(scale["std"])), float(content["guidance"]),
            float(content["text_dropout"]), dict(content["training"]),
        )  # fmt: skip
        if not members or not all(math.isfinite(v) and std > 0 for mean, std in members for v in (mean, std)):
            raise ValueError("a scale is not finite, or 0")
        return found, str(content["weights_sha256"])
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise RewardError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def load_head(head: torch.nn.Module, state: Mapping[str, Tensor], folder: Path) -> torch.nn.Module:
    """The head with these weights, which must be its own, in evaluation mode. Raises RewardError."""
    try:
        head.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RewardError(f"the weights of {folder} do not fit its architecture: {reason}") from error
    return head.eval().requires_grad_(False)


def _own(content: Mapping[str, Any]) -> str:
    """SHA-256 of what a description says, whatever its spaces."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
