"""Python that loads what was trained with diffusers alone."""

from __future__ import annotations

from typing import Any

from torch import nn


def usage(pipeline: Any, network: nn.Module, name: str, base: str, *, full: bool) -> str:
    """Loads the pipeline `base`, Python for its source, with the adapter in `adapter` or the whole network in `model`.

    `name` is what the pipeline calls its network.
    """
    kind, trained = type(pipeline).__name__, type(network).__name__
    # transformers keeps text encoders in the precision of their files, diffusers makes the network float32.
    pipe = f"pipe = {kind}.from_pretrained({base})\npipe.to(torch.float32)"
    if full:
        return (
            f"import torch\nfrom diffusers import {kind}, {trained}\n\n{pipe}\n"
            f"pipe.{name} = {trained}.from_pretrained('model/{name}')\n"
        )
    return f"import torch\nfrom diffusers import {kind}\n\n{pipe}\npipe.load_lora_weights('adapter')\n"
