"""Families of models, loaded by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tastemaker.diffusion.model import Model


def load_model(
    source: str,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    network_device: torch.device | str | None = None,
) -> Model:
    """The model at `source`: a bundled one, a folder of a diffusers pipeline, a hub name, or another package's. Raises
    ModelError.

    A model of another package is named by `module:factory` or an entry point (`third_party.py`).

    Its network may wait on another device, `network_device`, until it is sharded. Also raised where torch is too old to
    read what others made, the model's files and adapters.
    """
    from tastemaker.errors import ModelError
    from tastemaker.in_memory import require_named
    from tastemaker.models.bundled import folder_of
    from tastemaker.models.loading import load_pipeline
    from tastemaker.models.third_party import load_third_party, target_of
    from tastemaker.safe_torch import require_safe_torch

    require_named("model", source, ModelError)
    if target := target_of(source):
        return load_third_party(source, target, precision, device, network_device)
    require_safe_torch(f"the model {source}", ModelError)
    pipeline = load_pipeline(folder_of(source))
    return wrap_pipeline(pipeline, precision, device, network_device)


def load_meta_model(source: str) -> Model:
    """The model at `source` on PyTorch's meta device: its shapes without its weights. Raises ModelError.

    It can be resized, tuned and asked for a prediction, none of which computes anything. Of a model on the hub only
    the small files are downloaded; another package's factory is called with that device.
    """
    from tastemaker.models.bundled import folder_of
    from tastemaker.models.loading import load_skeleton
    from tastemaker.models.third_party import load_third_party, target_of

    if target := target_of(source):
        return load_third_party(source, target, "fp32", "meta", None)
    return wrap_pipeline(load_skeleton(folder_of(source)), "fp32", "meta")


def wrap_pipeline(
    pipeline: Any,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    network_device: torch.device | str | None = None,
) -> Model:
    """The model behind a loaded pipeline, which is frozen, moved and cast in place. Raises ModelError."""
    from tastemaker.models.families import family_of

    return family_of(type(pipeline).__name__).model(pipeline, precision, device, network_device)
