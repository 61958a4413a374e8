"""Low-rank adapters through peft, saved so that diffusers loads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

from tastemaker.errors import ModelError

WEIGHTS = "pytorch_lora_weights.safetensors"


def add_lora(network: Any, rank: int, alpha: float | None, targets: Sequence[str]) -> None:
    """Freezes `network` and gives the named linear layers an adapter: B A alpha / rank, with B = 0 at first.

    A is drawn from N(0, (1/rank)^2) (peft's "gaussian"), as in the public DDPO code. Raises
    ModelError where no layer has one of the names.
    """
    network.requires_grad_(False)
    names = {name.rpartition(".")[2] for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    # peft annotates lora_alpha as int, but multiplies by it: any number will do.
    scale: Any = rank if alpha is None else alpha
    config = LoraConfig(r=rank, lora_alpha=scale, init_lora_weights="gaussian", target_modules=list(targets))
    try:
        network.add_adapter(config)
    except ValueError as error:
        raise ModelError(
            f"tuning.targets is {list(targets)}, but no layer of the network has such a name; it has {sorted(names)}"
        ) from error
    for parameter in network.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


def save_lora(network: Any, folder: Path) -> None:
    """Writes the adapter to `folder` in the form of `StableDiffusionPipeline.load_lora_weights`, alpha included."""
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        folder,
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(network)),
        unet_lora_adapter_metadata=network.peft_config["default"].to_dict(),
    )


@contextmanager
def adapters_off(network: Any) -> Iterator[None]:
    """Inside it the network is the one that training started from."""
    network.disable_adapters()
    try:
        yield
    finally:
        network.enable_adapters()
