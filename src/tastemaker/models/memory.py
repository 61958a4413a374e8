"""Text encoders and VAE: off the device when they have no work, and an image, or a tile of one, at a time."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from tastemaker.diffusion.model import Model
from tastemaker.errors import ConfigError
from tastemaker.models.memory_settings import Memory
from tastemaker.models.text_encoders import is_meta


def check_memory(model: Model, memory: Memory) -> None:
    """Raises ConfigError where a model has not what the settings are about."""
    asked = [name for name in ("vae_slicing", "vae_tiling") if vars(memory)[name]]
    if asked and "vae" not in model.components:
        raise ConfigError(f"memory.{asked[0]} is true, but the model has no VAE: leave it off")
    if memory.prompt_states and not model.prompt_states:
        raise ConfigError("memory.prompt_states is true, but the model has no text encoder: leave it off")


def save_memory(model: Model, memory: Memory) -> None:
    """Applies the settings to a loaded model. Raises ConfigError where it has not what they are about.

    Text encoders that are loaded later (kept_prompt_states.py) are left out.
    """
    check_memory(model, memory)
    components = {name: part for name, part in model.components.items() if not is_meta(part)}
    vae: Any = components.pop("vae", None)
    if memory.vae_slicing:
        vae.enable_slicing()
    if memory.vae_tiling:
        vae.enable_tiling()
    if memory.offload:
        # A VAE is called by its methods encode and decode, which call its parts.
        for part in (*components.values(), *(() if vae is None else vae.children())):
            offload(part, model.device)


def offload(module: nn.Module, device: torch.device) -> None:
    """Keeps a module in main memory but for its own forward passes, which are on `device`, with their inputs.

    Where an output has a graph the module stays on the device, since the backward pass needs it there.
    """

    def before(module: nn.Module, arguments: Any, options: Any) -> Any:
        module.to(device)
        return send_to_device(arguments, device), send_to_device(options, device)

    def after(module: nn.Module, arguments: Any, output: Any) -> None:
        found = output if isinstance(output, torch.Tensor) else None
        if found is None or not found.requires_grad:
            module.to("cpu")

    module.register_forward_pre_hook(before, with_kwargs=True)
    module.register_forward_hook(after)
    module.to("cpu")
