"""Families of models, loaded by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tastemaker.models.pixel import PixelUNet
    from tastemaker.models.stable_diffusion import LatentUNet


def load_model(
    source: str,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    network_device: torch.device | str | None = None,
) -> LatentUNet | PixelUNet:
    """The model at `source`: `bundled`, a folder of a diffusers pipeline, or a hub name. Raises ModelError.

    Its network may wait on another device, `network_device`, until it is sharded. Also raised where torch is too old to
    read what others made, the model's files and adapters.
    """
    from tastemaker.errors import ModelError
    from tastemaker.models.bundled import bundled_pipeline
    from tastemaker.models.loading import load_pipeline
    from tastemaker.safe_torch import require_safe_torch

    require_safe_torch(f"the model {source}", ModelError)
    pipeline = load_pipeline(str(bundled_pipeline()) if source == "bundled" else source)
    return _of_family(pipeline, precision, device, network_device)


def load_meta_model(source: str) -> LatentUNet | PixelUNet:
    """The model at `source` on PyTorch's meta device: its shapes without its weights. Raises ModelError.

    It can be resized, tuned and asked for a prediction, none of which computes anything. Of a model on the hub only
    the small files are downloaded.
    """
    from tastemaker.models.bundled import bundled_pipeline
    from tastemaker.models.loading import load_skeleton

    return _of_family(load_skeleton(str(bundled_pipeline()) if source == "bundled" else source), "fp32", "meta", None)


def _of_family(
    pipeline: Any, precision: str, device: torch.device | str, network_device: torch.device | str | None
) -> LatentUNet | PixelUNet:
    from tastemaker.models.stable_diffusion import LatentUNet

    if type(pipeline).__name__ == "StableDiffusionPipeline":
        return LatentUNet(pipeline, precision, device, network_device)
    from tastemaker.models.pixel import PixelUNet

    return PixelUNet(pipeline, precision, device, network_device)
