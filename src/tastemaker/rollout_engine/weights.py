"""The trained adapter on the rollout engines: written where they see it, loaded, and shown to act.

An engine that answers yes may still sample with other weights: it may skip a path that it has loaded before, find no
layers of the adapter's names, or lose the adapter in a restart. So of every adapter that is loaded, each engine must
name its file, the checksum of its weights must change, and so must its image of a fixed seed, the probe. The first
adapter of a run has none before it to be compared with, so another one is loaded just before it, whose values are large
enough to change any image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

from tastemaker.errors import ConfigError, EngineError
from tastemaker.models import adapter_files
from tastemaker.models.mixing import Adapter, Factors
from tastemaker.models.network_weights import NetworkWeights
from tastemaker.rollout_engine.client import EngineClient
from tastemaker.runs import atomic

_NOISE = 0.1
"""Deviation of what is added to the factors B, which start at 0, for the adapter before the first."""


@dataclass(frozen=True)
class Seen:
    """One engine with an adapter."""

    checksum: str
    """SHA-256 of its network's weights."""
    probe: Tensor
    """[*D] the final latent of the probe."""
    repeat: float
    """Largest difference between two probes with the same weights."""


class EngineWeights:
    """Keeps the engines' adapter that of a network.

    `probe` makes the image of a fixed seed on the engine of an address, and returns its final latent [*D].
    """

    def __init__(
        self, client: EngineClient, weights: NetworkWeights, folder: Path, probe: Callable[[str], Tensor]
    ) -> None:
        self.client, self.weights, self._probe = client, weights, probe
        # Of its own, so that runs that share a folder take no file away from each other.
        self._folder = folder / f"run-{uuid4().hex[:12]}"
        self._file: Path | None = None
        self._digest = ""
        self._seen: dict[str, Seen] = {}

    def sync(self) -> None:
        """Has the engines load the network's adapter as it is now, if that is not what they have.

        Raises EngineError where one of them has not taken it, and ConfigError where the folder cannot be written.
        """
        adapter = with_scale_one(adapter_files.acting(self.weights.network))
        digest = adapter_digest(adapter)
        if digest == self._digest:
            return
        if not self._seen:
            self._load(with_noise(adapter))
        self._load(adapter)
        self._digest = digest

    def require_loaded(self) -> None:
        """Raises EngineError where an engine has another adapter than it was given, as after a restart."""
        require_file(self.client.adapters(), self._file)

    def _load(self, adapter: Adapter) -> None:
        """Has the engines load an adapter and compares them with what they were before."""
        known = {url: seen.checksum for url, seen in self._seen.items()}
        before, file = known or self.client.checksums(), self._write(adapter)
        self.client.load_adapter(file)
        require_file(self.client.adapters(), file)
        after = self.client.checksums()
        require_changed(before, after, file)
        self._seen = {url: self._look(url, checksum) for url, checksum in after.items()}
        last, self._file = self._file, file
        if last is not None and last.parent != file.parent:
            atomic.remove(last.parent)

    def _look(self, url: str, checksum: str) -> Seen:
        """The engine with its new adapter. Raises EngineError where its probe is still that of the one before."""
        probe, last = self._probe(url), self._seen.get(url)
        if last is None:
            return Seen(checksum, probe, (self._probe(url) - probe).abs().max().item())
        change = (probe - last.probe).abs().max().item()
        if change <= last.repeat:
            raise EngineError(
                f"the rollout engine {url} says that it has a new adapter, but its image of a fixed seed is the one "
                f"with the adapter before (they differ by {change:g}, and two with the same weights by "
                f"{last.repeat:g}): it applies no adapter, or rounds it away; start it with lora_merge_mode dynamic "
                "and deterministic kernels, and see in its log whether it knows the adapter's layers"
            )
        return replace(last, checksum=checksum, probe=probe)

    def _write(self, adapter: Adapter) -> Path:
        """The file of an adapter, in a folder named after its content: whole or absent."""
        target = self._folder / f"adapter-{adapter_digest(adapter)}"
        try:
            if not target.is_dir():
                temporary = self._folder / f".tmp-{target.name}"
                self._folder.mkdir(parents=True, exist_ok=True)
                adapter_files.write(adapter, self.weights.network, temporary)
                for file in temporary.iterdir():
                    atomic.write(file, file.read_bytes())
                atomic.move(temporary, target)
        except OSError as error:
            raise ConfigError(
                f"rollout_engine.folder is {self._folder.parent}, where no adapter can be written: "
                f"{error.strerror or error}"
            ) from error
        return adapter_files.find_adapter(target).absolute()


def require_file(loaded: Mapping[str, str | None], file: Path | None) -> None:
    """Raises EngineError where an engine, by its address, names another adapter's file than `file`."""
    for url, path in loaded.items():
        if path != str(file):
            raise EngineError(
                f"the rollout engine {url} has {'no adapter' if path is None else f'the adapter {path}'}, and not "
                f"{file}, which it was given: if it was restarted, go on with the run, which loads the adapter again; "
                "if another run uses it too, give each its own"
            )


def require_changed(before: Mapping[str, str], after: Mapping[str, str], file: Path) -> None:
    """Raises EngineError where the checksums of the engines' weights are not new, or not all the same."""
    for url, checksum in after.items():
        if checksum == before[url]:
            raise EngineError(
                f"the rollout engine {url} says that it has loaded {file}, but the checksum of its weights is the one "
                f"from before, {checksum[:16]}: its images would be those of old weights; restart it and go on"
            )
    if len(set(after.values())) > 1:
        listed = ", ".join(f"{url} {checksum[:16]}" for url, checksum in after.items())
        raise EngineError(
            f"the rollout engines have different weights with the same adapter ({listed}): start all of them with the "
            "same model, precision and parallelism"
        )


def with_scale_one(adapter: Adapter) -> Adapter:
    """The same adapter on the CPU with its scales in the factors B, for engines that do not read a file's alpha."""
    return {
        name: Factors(f.a.detach().cpu().float(), (f.b.detach().cpu().double() * f.scale).float(), 1.0)
        for name, f in adapter.items()
    }


def with_noise(adapter: Adapter) -> Adapter:
    """The adapter with normal noise added to its factors B, so that it changes every image."""
    random = torch.Generator().manual_seed(0)
    return {
        name: replace(factors, b=factors.b + _NOISE * torch.randn(factors.b.shape, generator=random))
        for name, factors in sorted(adapter.items())
    }


def adapter_digest(adapter: Adapter) -> str:
    """16 hexadecimal digits of an adapter's values and names."""
    found = hashlib.sha256()
    for name, value in sorted(adapter_files.tensors(adapter).items()):
        found.update(f"{name}:{tuple(value.shape)};".encode())
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
