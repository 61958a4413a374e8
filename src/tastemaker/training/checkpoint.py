"""Checkpoints: everything that the next round depends on, as safetensors and JSON, in place only when whole.

Noise comes from counters, so a run's position is its round number; there is no random state to save.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tastemaker.errors import ConfigError

KEEP = 2
"""Newest checkpoints kept; all but the newest exist for the case that its disk block dies."""


@dataclass
class State:
    """What changes from round to round."""

    round: int = 0
    """Rounds done."""
    reward_queries: int = 0
    base_mean: float = 0.0
    """Mean of the base model's rewards on the evaluation pictures."""
    base_std: float = 1.0
    """Their standard deviation, the unit in which progress is shown."""
    past_rewards: dict[str, list[float]] = field(default_factory=dict)
    """Each prompt's ring buffer."""


def save(folder: Path, state: State, weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> Path:
    """Writes checkpoints/step-NNNNNN under the run's folder, then drops the oldest beyond `KEEP`."""
    checkpoints = folder / "checkpoints"
    final = checkpoints / f"step-{state.round:06d}"
    temporary = checkpoints / f".tmp-{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file({name: p.detach().cpu().contiguous() for name, p in weights.items()}, temporary / "weights.safetensors")
    tensors, numbers = _optimizer_state(optimizer)
    save_file(tensors, temporary / "optimizer.safetensors")
    (temporary / "state.json").write_text(json.dumps({"state": vars(state), "optimizer": numbers}), encoding="utf-8")
    for file in temporary.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    for old in sorted(checkpoints.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)
    return final


def load(folder: Path, weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> State:
    """Puts the newest checkpoint of a run into `weights` and `optimizer`, and returns its state.

    Raises ConfigError where there is none, or where its weights are not those of this model.
    """
    found = sorted((folder / "checkpoints").glob("step-*"))
    if not found:
        raise ConfigError(f"{folder} has no checkpoint to go on from: start it again with `tastemaker train`")
    saved = load_file(found[-1] / "weights.safetensors")
    if saved.keys() != weights.keys():
        raise ConfigError(f"{found[-1]} holds other weights than this run trains: was config.yaml changed?")
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(saved[name])
    content = json.loads((found[-1] / "state.json").read_text(encoding="utf-8"))
    _restore_optimizer(optimizer, load_file(found[-1] / "optimizer.safetensors"), content["optimizer"])
    return State(**content["state"])


def _optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, slots in state["state"].items()
        for name, value in slots.items()
    }
    return tensors, {"groups": state["param_groups"]}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, slot = name.partition(".")
        slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": numbers["groups"]})
