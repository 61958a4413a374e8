"""Which weights learn: all of a network's, or low-rank adapters through peft."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tastemaker.errors import ModelError
from tastemaker.models.library_logging import quiet
from tastemaker.models.tuning import ATTENTION, JOINT_ATTENTION, Tuning

WEIGHTS = "pytorch_lora_weights.safetensors"
"""Name of an adapter's file in diffusers' form."""
PEFT_WEIGHTS = "adapter_model.safetensors"
"""Name of an adapter's file in peft's own form."""


def tune(network: Any, tuning: Tuning, seed: int, like: LoraConfig | None = None) -> None:
    """Makes a frozen diffusers network trainable, by adapters (drawn from `seed`) or in full.

    `like`: layers, ranks and scales of the adapters, where they are not those of `tuning`.
    """
    if tuning.mode == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if like is None:
                add_lora(network, tuning.rank, tuning.alpha, tuning.targets)
            else:
                add_adapter(network, like)
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


def adaptable(network: nn.Module) -> dict[str, nn.Module]:
    """The linear and convolution layers by name, without the adapters that they may have already."""
    adapted = {name: module for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)}
    inside = tuple(f"{name}." for name in adapted)
    plain = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not name.startswith(inside)
    }
    return plain | {name: module.get_base_layer() for name, module in adapted.items()}


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """The shape of a linear or convolution layer's weight, which quantized layers store in another."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return tuple(cast(torch.Tensor, layer.weight).shape)


def add_lora(network: Any, rank: int, alpha: float | None, targets: Sequence[str]) -> None:
    """Freezes `network` and gives the named linear and convolution layers an adapter: B A alpha / rank, B = 0 at first.

    A name is a layer's own, or its end, as `to_q` or `attn2.to_q`; ATTENTION stands for all attention projections. A is
    drawn from N(0, (1/rank)^2) (peft's "gaussian"), as in the public DDPO code. Raises ModelError where a name is of no
    layer, or of one of another kind.
    """
    if tuple(targets) == ATTENTION:
        ends = {name.rpartition(".")[2] for name in adaptable(network)}
        targets = [*ATTENTION, *(name for name in JOINT_ATTENTION if name in ends)]
    _require_known(network, targets)
    # peft annotates lora_alpha as int, but multiplies by it: any number will do.
    scale: Any = rank if alpha is None else alpha
    config = LoraConfig(r=rank, lora_alpha=scale, init_lora_weights="gaussian", target_modules=list(targets))
    add_adapter(network, config)


def add_adapter(network: Any, config: LoraConfig) -> None:
    """Freezes `network` and gives it an adapter, in float32."""
    network.requires_grad_(False)
    if hasattr(network, "add_adapter"):
        network.add_adapter(config)
    else:
        inject_adapter_in_model(config, network)
    for parameter in network.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


def _require_known(network: nn.Module, targets: Sequence[str]) -> None:
    """Raises ModelError where a target is no name of a layer that can have an adapter, or of another one too."""
    known = adaptable(network)
    for target in targets:
        found = [name for name, _ in network.named_modules() if f".{name}".endswith(f".{target}")]
        other = [name for name in found if name not in known]
        if found and not other:
            continue
        is_there = f"{other[0]} is a {type(network.get_submodule(other[0])).__name__}" if other else "there is none"
        # Their last names, with the index of those in a list.
        ends = {match[0] for name in known if (match := re.search(r"[^.]+(\.\d+)*$", name))}
        raise ModelError(
            f"tuning.targets is {list(targets)}, but only linear and convolution layers can have an adapter, and of "
            f"{target!r} {is_there}: this model has {', '.join(sorted(ends))}"
        )
    # Of a saved adapter, as peft has them; diffusers gives some names of other formats another meaning.
    names = {f"{name}.lora_A.weight": None for name in known}
    renamed = sorted(names.keys() - convert_unet_state_dict_to_peft(names).keys())
    for name in renamed:
        if any(f".{name.removesuffix('.lora_A.weight')}".endswith(f".{target}") for target in targets):
            raise ModelError(
                f"tuning.targets is {list(targets)}, but diffusers would rename {name} when it loads the adapter: "
                "choose other layers, or tuning.mode = full"
            )


def reference(network: Any, tuned: Tuning | None) -> AbstractContextManager[None]:
    """Inside it the adapters are off. Raises ModelError for a fully tuned network, which keeps no copy."""
    if tuned is None:
        return nullcontext()
    if tuned.mode == "full":
        raise ModelError(
            "the whole network was tuned and no copy of the base model is held: set weights.held before training"
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
