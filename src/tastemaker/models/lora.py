"""Which weights learn: all of a network's, or low-rank adapters through peft, saved so that others load them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from tastemaker.errors import ModelError
from tastemaker.models.quiet import quiet
from tastemaker.models.tuning import Tuning

WEIGHTS = "pytorch_lora_weights.safetensors"
"""Name of an adapter's file in diffusers' form."""
PEFT_WEIGHTS = "adapter_model.safetensors"
"""Name of an adapter's file in peft's own form."""


def tune(network: Any, tuning: Tuning, seed: int) -> None:
    """Makes a frozen diffusers network trainable, by adapters (drawn from `seed`) or in full."""
    if tuning.mode == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            add_lora(network, tuning.rank, tuning.alpha, tuning.targets)
    else:
        with quiet():  # diffusers warns of modules that should be in float32, which they now are
            network.to(torch.float32)
        network.requires_grad_(True)
    if tuning.gradient_checkpointing:
        # diffusers recomputes only in training mode, in which dropout would make the likelihood a random number.
        network.enable_gradient_checkpointing()
        network.train()
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.eval()


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
        if hasattr(network, "add_adapter"):
            network.add_adapter(config)
        else:
            inject_adapter_in_model(config, network)
    except ValueError as error:
        raise ModelError(
            f"tuning.targets is {list(targets)}, but no layer of the network has such a name; it has {sorted(names)}"
        ) from error
    for parameter in network.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


def save_lora(network: Any, folder: Path) -> None:
    """Writes the adapter to `folder` in the form of `StableDiffusionPipeline.load_lora_weights`, alpha included."""
    write_lora(get_peft_model_state_dict(network), network.peft_config["default"], folder)


def write_lora(state: dict[str, Tensor], config: LoraConfig, folder: Path) -> None:
    """`save_lora` of an adapter by peft's names."""
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        folder,
        unet_lora_layers=convert_state_dict_to_diffusers(state),
        unet_lora_adapter_metadata=config.to_dict(),
    )


def save_peft(network: Any, folder: Path) -> None:
    """Writes the adapter to `folder` in the form of `peft.PeftModel.from_pretrained`, alpha included."""
    write_peft(get_peft_model_state_dict(network), network.peft_config["default"], folder)


def write_peft(state: dict[str, Tensor], config: LoraConfig, folder: Path) -> None:
    """`save_peft` of an adapter by peft's names."""
    folder.mkdir(parents=True, exist_ok=True)
    # peft's own files hold the names of its wrapper around a model.
    weights = {f"base_model.model.{name}": value.contiguous().cpu() for name, value in state.items()}
    save_file(weights, folder / PEFT_WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def reference(network: Any, tuned: Tuning | None) -> AbstractContextManager[None]:
    """Inside it the adapters are off. Raises ModelError for a fully tuned network, which keeps no copy."""
    if tuned is None:
        return nullcontext()
    if tuned.mode == "full":
        raise ModelError(
            "the whole U-Net was tuned and no copy of the base model is held: set model.held before training"
        )
    return adapters_off(network)


@contextmanager
def adapters_off(network: nn.Module) -> Iterator[None]:
    """Inside it the network is the one that training started from."""
    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    learning = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        # peft lets adapters learn that are turned on. Those loaded to sample do not, and torch multiplies by weights
        # that learn in another order, even where no graph is kept.
        for parameter, was in learning:
            parameter.requires_grad_(was)


def remove(network: Any) -> None:
    """Takes every adapter off for good: the network is the one that was loaded."""
    recurse_remove_peft_layers(network)
    for mark in ("peft_config", "_hf_peft_config_loaded"):
        if mark in vars(network):
            delattr(network, mark)


@contextmanager
def applied(model: Any, folder: Path) -> Iterator[None]:
    """Inside it a model that has no adapter has the folder's."""
    model.apply(folder)
    try:
        yield
    finally:
        remove(model.pipeline.unet)
