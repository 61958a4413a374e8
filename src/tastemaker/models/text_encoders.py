"""Text encoders on their device, or without weights until they are needed (kept_prompt_states.py)."""

from __future__ import annotations

import torch
from torch import nn

from tastemaker.models.library_logging import quiet


def is_meta(module: nn.Module) -> bool:
    """Whether a network has shapes and no weights, on PyTorch's meta device."""
    return any(parameter.is_meta for parameter in module.parameters())


def place(encoder: nn.Module, device: torch.device | str, dtype: torch.dtype) -> None:
    """Freezes a text encoder, casts it, and moves it to the device where it has weights."""
    encoder.requires_grad_(False).eval()
    with quiet():
        encoder.to("meta" if is_meta(encoder) else device, dtype)
