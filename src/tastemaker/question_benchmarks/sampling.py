"""How a benchmark's images are sampled, and by what the same images are known again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tastemaker.diffusion.sde_types import SdeType

if TYPE_CHECKING:
    from tastemaker.config.schema import Sampling as SamplerSettings
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
    sampling: SamplerSettings,
    batch: int,
) -> Sampling:
    """Images of a model by its name, with an adapter or the run or folder that it is in.

    Raises ModelError where there is no such model, and ConfigError where there is no adapter; loads neither.
    """
    from tastemaker.evaluation.model_settings import set_up
    from tastemaker.models import load_meta_model
    from tastemaker.models.adapter_files import find_adapter

    set_up(load_meta_model(model), sampling)
    found = None if adapter is None else find_adapter(adapter)

    def load() -> Model:
        from tastemaker.evaluation.images import load_here

        loaded = load_here(model, sampling)
        if found is not None:
            loaded.weights.load(found)
        return loaded

    identity = identity_of(model, found, sampling)
    return Sampling(
        name, load, identity, n, seed, sampling.steps, sampling.guidance, sampling.eta, batch, sampling.sde_type
    )


def identity_of(model: str, adapter: Path | None, sampling: SamplerSettings) -> dict[str, Any]:
    """By which a model, named by its source or a digest of its weights, is known again with the file of its adapter."""
    weight, negative = sampling.embedded_guidance, sampling.negative_prompt
    return {
        "model": model, "adapter": None if adapter is None else adapter_digest(adapter),
        "height": sampling.height, "width": sampling.width,
        **({"negative_prompt": negative} if negative else {}),
        **({} if weight is None else {"embedded_guidance": weight}),
    }  # fmt: skip


def adapter_digest(found: Path) -> str:
    """SHA-256 of an adapter's file, or of the weights in the folder of a whole U-Net."""
    file = found / "diffusion_pytorch_model.safetensors" if found.is_dir() else found
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
