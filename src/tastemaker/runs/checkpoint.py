"""Checkpoints: everything that the next round depends on, as safetensors and JSON, in place only when whole.

Noise comes from counters and the learning rate from the number of updates done, so a run's position is its round
number; there is no random state and no schedule to save.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor, nn

from tastemaker.config.schema import Checkpoints
from tastemaker.errors import CheckpointError
from tastemaker.runs import atomic
from tastemaker.runs.manifest import CorruptCheckpoint, verify_manifest, write_manifest
from tastemaker.runs.sharding import gathered, like

WEIGHTS, OPTIMIZER, STATE = FILES = ("weights.safetensors", "optimizer.safetensors", "state.json")
COPIES = "copies.safetensors"
"""Only of runs whose reference moves, that average their weights or sample with their average, or that keep those of a
round."""


@dataclass
class State:
    """What changes from round to round."""

    round: int = 0
    """Rounds done."""
    updates: int = 0
    """Optimizer steps taken so far."""
    reward_queries: int = 0
    """Images scored for training so far."""
    base_mean: float = 0.0
    """Mean of the base model's rewards on the evaluation images."""
    base_std: float = 1.0
    """Their standard deviation, the unit in which progress is shown; 0, and no unit, where they do not differ."""
    base_parts: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Mean and deviation, on the same images, of combined rewards' parts and of what they standardise: first by the
    setting that names the reward."""
    past_rewards: dict[str, list[float]] = field(default_factory=dict)
    """Each prompt's ring buffer, or its rewards of recent rounds."""
    past_rounds: dict[str, list[int]] = field(default_factory=dict)
    """The rounds of `past_rewards`, where these matter."""
    kl: float | None = None
    """Weight of the divergence in the reward, where a controller has moved it."""
    best_metric: float | None = None
    """Highest value so far of the measure that the run is stopped by."""
    kept_round: int = 0
    """The round whose weights are kept in case of that."""
    watched: dict[str, Any] | None = None
    """What evaluations are compared with to find over-optimisation (evaluation.over_optimisation.History)."""
    best_value: float | None = None
    """Highest value so far of the metric by which the best model is kept."""
    best_round: int = 0
    """The round of the best model."""


@dataclass(frozen=True)
class Training:
    """What a checkpoint is taken of and put back into, besides the state."""

    weights: Mapping[str, nn.Parameter]
    """The trainable parameters by name."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None
    """Of float16 training."""
    copies: Mapping[str, Tensor] = field(default_factory=dict)
    """The reference's weights, where they are not those that training started from, and average ones, by name."""


def save(
    folder: Path,
    state: State,
    training: Training,
    fingerprint: Mapping[str, Any],
    keep: Checkpoints,
    *,
    write: bool = True,
) -> Path:
    """Writes checkpoints/step-NNNNNN under the run's folder, and when it is on disk drops those not to be kept.

    `fingerprint` (runs/fingerprint.py) are what a resumed run is compared with. All processes that share a sharded
    network must call it, and one of them `write`. Raises OSError where the disk does not take it; the checkpoints
    that were there still are.
    """
    checkpoints = folder / "checkpoints"
    final = checkpoints / f"step-{state.round:06d}"
    temporary = checkpoints / f".tmp-{final.name}"
    weights = gathered(training.weights, write)
    slots, numbers = _optimizer_state(training.optimizer)
    tensors = gathered(slots, write)
    if not write:
        return final
    scaler = training.scaler.state_dict() if training.scaler is not None else None
    content = {"state": vars(state), "optimizer": numbers, "scaler": scaler}
    files = {
        WEIGHTS: serialise(weights),
        OPTIMIZER: serialise(tensors),
        STATE: json.dumps(content, indent=1).encode(),
    }
    if training.copies:
        files[COPIES] = serialise({name: value.cpu().contiguous() for name, value in training.copies.items()})
    checkpoints.mkdir(parents=True, exist_ok=True)
    for leftover in checkpoints.glob(".*-step-*"):
        rmtree(leftover)
    temporary.mkdir()
    write_manifest(temporary, files, fingerprint)
    if final.exists():
        atomic.remove(final)
    atomic.move(temporary, final)
    prune(folder, keep)
    return final


def prune(folder: Path, keep: Checkpoints) -> None:
    """Drops the checkpoints of a run that are not to be kept. Raises OSError where the disk does not let go of them."""
    for old in _found(folder / "checkpoints")[: -keep.keep]:
        if not keep.keep_every or _round(old) % keep.keep_every:
            atomic.remove(old)


def load(folder: Path, training: Training) -> tuple[State, dict[str, Any], list[str]]:
    """Puts the newest whole checkpoint of a run into `training`.

    Returns its state, its fingerprint, and a line on each newer checkpoint that was found damaged and passed over.
    Raises CheckpointError where there is none, or where it is not one of this model.
    """
    path, files, fingerprint, notes = newest(folder)
    try:
        saved, slots = parse(files[WEIGHTS]), parse(files[OPTIMIZER])
        copies = parse(files[COPIES]) if training.copies else {}
        content = json.loads(files[STATE])
        state, numbers, scale = State(**content["state"]), content["optimizer"], content["scaler"]
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is whole, but not of a kind that this version reads: {error}") from error
    _check(path, saved, slots, training.weights)
    _same(path, copies, training.copies)
    if (scale is None) != (training.scaler is None):
        raise CheckpointError(f"{path} was written in another precision: float16 has a loss scale, and others none")
    with torch.no_grad():
        for name, parameter in training.weights.items():
            parameter.copy_(like(saved[name], parameter))
        for name, value in training.copies.items():
            value.copy_(copies[name])
    _restore_optimizer(training.optimizer, slots, numbers)
    if training.scaler is not None:
        training.scaler.load_state_dict(scale)
    return state, fingerprint, notes


def newest(folder: Path) -> tuple[Path, dict[str, bytes], dict[str, Any], list[str]]:
    """The newest checkpoint whose every bit is as written: its path, files, fingerprint, and notes on newer ones.

    Raises CheckpointError where no checkpoint is whole.
    """
    notes: list[str] = []
    for path in reversed(_found(folder / "checkpoints")):
        try:
            files, fingerprint = verify_manifest(path)
            missing = [name for name in FILES if name not in files]
            if missing:
                raise CorruptCheckpoint(f"it has no {' and no '.join(missing)}")
        except CorruptCheckpoint as error:
            notes.append(f"{path} is damaged and was passed over: {error}")
            continue
        return path, files, fingerprint, notes
    found = "; ".join(notes) or "there is none"
    raise CheckpointError(f"{folder} has no checkpoint to go on from ({found}): start it again with `tastemaker train`")


def saved_round(folder: Path) -> int:
    """The round of the newest checkpoint, -1 where there is none; without reading it."""
    return max((_round(path) for path in _found(folder / "checkpoints")), default=-1)


def _found(checkpoints: Path) -> list[Path]:
    numbered = [path for path in checkpoints.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(numbered, key=_round)


def _round(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _check(path: Path, saved: Mapping[str, Tensor], slots: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    _same(path, saved, weights)
    # Before the first update an optimizer has no state; after it, one for every parameter.
    indices = {name.partition(".")[0] for name in slots}
    if indices and len(indices) != len(weights):
        raise CheckpointError(f"{path} has optimizer state for {len(indices)} of {len(weights)} parameters")


def _same(path: Path, saved: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    wrong = sorted(saved.keys() ^ weights.keys())
    if wrong:
        raise CheckpointError(
            f"{path} holds other weights than this run trains ({wrong[0]} and {len(wrong) - 1} more): "
            "was config.yaml changed?"
        )
    for name, parameter in weights.items():
        if saved[name].shape != parameter.shape:
            raise CheckpointError(
                f"{path}: {name} has the shape {list(saved[name].shape)}, but this run's has "
                f"{list(parameter.shape)}: was config.yaml changed?"
            )


def _optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's tensors by parameter and slot, as in `3.exp_avg`; and the rest of its state, as JSON."""
    state = optimizer.state_dict()
    slots = dict(_flat(state["state"]))
    tensors = {name: value for name, value in slots.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in slots.items() if not isinstance(value, Tensor)}
    return tensors, {"groups": state["param_groups"], "numbers": numbers}


def _flat(nested: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Slots by name; 8-bit optimizers have some of them one level deeper."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slots: dict[int, dict[str, Any]] = {}
    for name, value in (tensors | rest["numbers"]).items():
        index, *path, slot = name.split(".")
        parameter = parameters[int(index)]
        entry = slots.setdefault(int(index), {})
        for part in path:
            entry = entry.setdefault(part, {})
        moment = isinstance(value, Tensor) and value.shape == parameter.shape
        entry[slot] = like(value, parameter) if moment else value
    optimizer.load_state_dict({"state": slots, "param_groups": rest["groups"]})
