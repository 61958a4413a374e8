"""What `tastemaker evaluate` compares: a base model, or one with an adapter, a checkpoint or a mixture of adapters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load as parse
from safetensors.torch import load_file
from torch import Tensor, nn

from tastemaker.diffusion.model import Model
from tastemaker.errors import ModelError
from tastemaker.evaluation.mixture import common_frozen, mixture
from tastemaker.models import adapter_files, adapter_loading
from tastemaker.models.lora import add_lora, remove
from tastemaker.models.mixing import Adapter, Factors, Mode
from tastemaker.models.tuning import Tuning
from tastemaker.runs.checkpoint import COPIES, WEIGHTS
from tastemaker.runs.manifest import NAME, CorruptCheckpoint, verify_manifest


@dataclass(frozen=True)
class Trained:
    """What a training left: an adapter's file, or the folder of a whole network."""

    path: Path

    @property
    def files(self) -> list[Path]:
        """The files with its weights."""
        return sorted(self.path.glob("*.safetensors")) if self.path.is_dir() else [self.path]


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a run after one of its rounds, as its evaluations sample with them."""

    folder: Path
    """RUN/checkpoints/step-NNNNNN."""
    tuning: Tuning
    averaged: bool
    """Whether the run averages its weights (`optimizer.ema`); its evaluations then take the average."""

    @property
    def files(self) -> list[Path]:
        """The manifest, which has the hashes of all others."""
        return [self.folder / NAME]


@dataclass(frozen=True)
class Mixture:
    """A mixture of adapters, as `tastemaker mix` makes it."""

    adapters: tuple[Path, ...]
    """Their files."""
    weights: tuple[float, ...]
    mode: Mode
    rank: int | None = None

    @property
    def files(self) -> list[Path]:
        """The adapters' files."""
        return list(self.adapters)


Change = Trained | Checkpoint | Mixture
"""What distinguishes a model from its base model."""


@dataclass(frozen=True)
class EvaluatedModel:
    """One column of the comparison."""

    label: str
    model: str
    """The base model, as `--model` takes it."""
    change: Change | None = None
    """None for a base model itself."""
    reference: str | None = None
    """The label of the model that it is compared with; None where there is none."""
    trained_on: tuple[str, ...] = ()
    """The rewards that it was trained on, where that is known."""
    source: str = ""
    """What was given for it."""
    run: str = ""
    """The run that it is of; empty elsewhere."""
    round: int | None = None
    """The round of the run after which it was, where that is known."""
    parts: tuple[tuple[str, float], ...] = ()
    """Of a mixture: its adapters' names, each with its weight."""


def digest(change: Change | None) -> str | None:
    """16 hexadecimal digits that tell weights from others, by the content of their files. Raises ModelError."""
    if change is None:
        return None
    found = hashlib.sha256()
    for file in change.files:
        try:
            with file.open("rb") as opened:
                while block := opened.read(1 << 22):
                    found.update(block)
        except OSError as error:
            raise ModelError(f"cannot read {file}: {error.strerror or error}") from error
    return found.hexdigest()[:16]


def check(evaluated: EvaluatedModel, model: Model) -> None:
    """Raises ModelError where the weights do not fit `model`, which may be on the meta device.

    The weights of a whole network are compared when they are loaded.
    """
    match evaluated.change:
        case Trained(path) if path.is_file():
            adapter_files.read(path, model.weights.network)
        case Mixture() as mixed:
            _mixed(mixed, model.weights.network)
        case Checkpoint() as checkpoint:
            saved = _weights_of(checkpoint)
            if checkpoint.tuning.mode == "lora":
                _as_adapter(checkpoint, saved, model.weights.network)
            else:
                _require_same_names(checkpoint, saved, model.weights.network)
        case _:
            pass


def adapter_of(change: Change, network: nn.Module) -> Adapter:
    """The adapter that a change of adapters alone is. Raises ModelError where its files do not fit the network."""
    match change:
        case Trained(path):
            return adapter_files.read(path, network)
        case Mixture() as mixed:
            return _mixed(mixed, network)
        case Checkpoint() as checkpoint:
            return _as_adapter(checkpoint, _weights_of(checkpoint), network)


def network_of(change: Trained | Checkpoint, network: nn.Module) -> dict[str, Tensor]:
    """All weights of a whole network, as a full training left them. Raises ModelError where they are of another."""
    if isinstance(change, Checkpoint):
        saved = _weights_of(change)
        _require_same_names(change, saved, network)
        return saved
    saved = {name: value for file in change.files for name, value in load_file(file).items()}
    own = {name: value.shape for name, value in network.state_dict().items()}
    _require_equal(change.path, {name: value.shape for name, value in saved.items()}, own)
    return saved


@contextmanager
def changed(model: Model, evaluated: EvaluatedModel, folder: Path) -> Iterator[None]:
    """Inside it a base model has the weights of the evaluated one; afterwards its own, bit for bit.

    Adapters of checkpoints and mixtures are written to `folder`, in diffusers' form. Raises ModelError.
    """
    network = model.weights.network
    match evaluated.change:
        case None:
            yield
            return
        case Trained(path) if path.is_file():
            pass
        case Trained(path):
            with _restored(network):
                model.weights.load(path)
                yield
            return
        case Mixture() as mixed:
            adapter_files.write(_mixed(mixed, network), network, folder, common_frozen(mixed.adapters))
            path = folder
        case Checkpoint() as checkpoint:
            saved = _weights_of(checkpoint)
            if checkpoint.tuning.mode == "full":
                _require_same_names(checkpoint, saved, network)
                with _restored(network):
                    network.load_state_dict({**network.state_dict(), **saved})
                    yield
                return
            adapter_files.write(_as_adapter(checkpoint, saved, network), network, folder, checkpoint.tuning.frozen)
            path = folder
    with model.weights.loaded(path):
        yield


def _mixed(mixed: Mixture, network: nn.Module) -> Adapter:
    parts = [adapter_files.read(path, network) for path in mixed.adapters]
    return mixture(parts, mixed.weights, mixed.mode, mixed.rank)


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    before = {name: value.detach().clone() for name, value in network.state_dict().items()}
    try:
        yield
    finally:
        network.load_state_dict(before)


def _weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The trained weights by name, without a value network's. Raises ModelError where the checkpoint is damaged."""
    file, prefix = (COPIES, "average.") if checkpoint.averaged else (WEIGHTS, "")
    try:
        files, _ = verify_manifest(checkpoint.folder)
        tensors = parse(files[file])
    except (CorruptCheckpoint, KeyError, ValueError) as error:
        raise ModelError(f"the checkpoint {checkpoint.folder} is damaged: {error}") from error
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix) and not name.startswith("value.")
    }


def _as_adapter(checkpoint: Checkpoint, saved: dict[str, Tensor], network: nn.Module) -> Adapter:
    """The adapter that the trained factors are. Raises ModelError where the network has other layers."""
    tuning = checkpoint.tuning
    with torch.random.fork_rng(devices=[]):
        if tuning.start_from is None:
            add_lora(network, tuning.rank, tuning.alpha, tuning.targets)
        else:  # its layers, ranks and scales are that adapter's
            adapter_loading.start(network, tuning, 0)
    try:
        own = {name: p.shape for name, p in network.named_parameters() if p.requires_grad}
        scales = adapter_files.scales(network)
    finally:
        remove(network)
    _require_equal(checkpoint.folder, {name: value.shape for name, value in saved.items()}, own)
    ends = ".lora_A.default.weight", ".lora_B.default.weight"
    return {
        layer: Factors(saved[layer + ends[0]].float(), saved[layer + ends[1]].float(), scale)
        for layer, scale in scales.items()
    }


def _require_same_names(checkpoint: Checkpoint, saved: dict[str, Tensor], network: nn.Module) -> None:
    own = {name: parameter.shape for name, parameter in network.named_parameters()}
    _require_equal(checkpoint.folder, {name: value.shape for name, value in saved.items()}, own)


def _require_equal(weights: Path, saved: Mapping[str, Sequence[int]], own: Mapping[str, Sequence[int]]) -> None:
    wrong = [name for name in sorted(saved.keys() | own.keys()) if saved.get(name) != own.get(name)]
    if wrong:
        raise ModelError(
            f"{weights} is of another model: {len(wrong)} of its weights differ in name or "
            f"shape, {wrong[0]} among them; give the --model that was trained"
        )
