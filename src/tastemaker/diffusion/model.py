"""The protocol of every model: what sampling, training and evaluation use of one. Letters in shapes: types.py."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from tastemaker.diffusion.process import Process
from tastemaker.types import Cond

if TYPE_CHECKING:
    from tastemaker.models.weight_copy import WeightCopy


class Model(Protocol):
    """A narrow door to a text-to-image model; keep it narrow."""

    network: nn.Module
    """What is trained. The loop puts the wrapped (distributed) module here, and only it is ever called."""
    latent_shape: tuple[int, ...]
    device: torch.device
    held: WeightCopy | None
    """The reference's weights, where they are not those without adapters."""

    @property
    def scale(self) -> int:
        """Pixels to a side of one latent element."""
        ...

    @property
    def process(self) -> Process:
        """The noising process that the network was trained on."""
        ...

    def encode(self, prompts: Sequence[str], guidance: float) -> Cond:
        """Text states, cached by prompt."""
        ...

    def pooled(self, prompts: Sequence[str]) -> Tensor:
        """[B,C] one state for each prompt: the text encoder's pooled output, or what there is one of anyway."""
        ...

    def clear_prompt_cache(self) -> None:
        """Drops the text states that `encode` has kept."""
        ...

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Estimate of x_0, [N,*D], guidance included; t [N] holds training times.

        In float64: near the image a step's noise is small, and rounding the estimate to float32 would move the
        log-probability by as much as the ratio may be off before the first update.
        """
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """Images [N,3,H,W] in [0,1], differentiable."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents [N,*D] of images [N,3,H,W] in [0,1], without gradient: what `decode` would show again."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside it, the model is the one that was held last, or that training started from."""
        ...
