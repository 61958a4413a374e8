"""How a benchmark's images are sampled, and by what the same images are known again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tastemaker.diffusion.sde_types import SdeType

if TYPE_CHECKING:
    from tastemaker.diffusion.model import Model


@dataclass(frozen=True)
class Sampling:
    """Images of a model."""

    name: str
    """The model and the adapter, for people."""
    load: Callable[[], Model]
    identity: Mapping[str, Any]
    """By which the same model is known again, as JSON."""
    n: int
    seed: int
    steps: int
    guidance: float
    eta: float
    batch: int = 16
    sde_type: SdeType = "auto"

    @property
    def figures(self) -> dict[str, Any]:
        """What the images depend on, as JSON."""
        names = ("n", "seed", "steps", "guidance", "eta", "sde_type")
        return {**self.identity, **{name: getattr(self, name) for name in names}}


def sampling_of(
    model: str,
    adapter: Path | None,
    *,
    name: str,
    n: int,
    seed: int,
    steps: int,
    guidance: float,
    eta: float,
    height: int | None,
    width: int | None,
    batch: int,
    sde_type: SdeType = "auto",
    negative_prompt: str = "",
) -> Sampling:
    """Images of a model by its name, with an adapter or the run or folder that it is in.

    Raises ModelError where there is no such model, and ConfigError where there is no adapter; loads neither.
    """
    from tastemaker.models import load_meta_model
    from tastemaker.models.adapter_files import find_adapter

    load_meta_model(model).resize(height, width)
    found = None if adapter is None else find_adapter(adapter)

    def load() -> Model:
        from tastemaker.evaluation.images import load_here

        loaded = load_here(model, height, width, negative_prompt)
        if found is not None:
            loaded.weights.load(found)
        return loaded

    identity = {
        "model": model, "adapter": None if found is None else adapter_digest(found), "height": height, "width": width,
        **({"negative_prompt": negative_prompt} if negative_prompt else {}),
    }  # fmt: skip
    return Sampling(name, load, identity, n, seed, steps, guidance, eta, batch, sde_type)


def adapter_digest(found: Path) -> str:
    """SHA-256 of an adapter's file, or of the weights in the folder of a whole U-Net."""
    file = found / "diffusion_pytorch_model.safetensors" if found.is_dir() else found
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
