"""The first half of a diffusers U-Net: from a latent to the features of its bottleneck."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from tastemaker.diffusion.model import Model
from tastemaker.errors import ModelError
from tastemaker.models.inner_output import inner_output
from tastemaker.types import Cond

PARTS = ("conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block")
"""The modules of a diffusers U-Net that make its bottleneck's features."""


def bottleneck(parts: Any, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """Features [N,C,h,w] of latents x [N,*D] at training times t [N], with text states [N,L,C'].

    `parts` has the modules PARTS: a U-Net, or what has copies of them.
    """
    embedded = parts.time_embedding(parts.time_proj(t).to(x.dtype))
    hidden = parts.conv_in(x)
    for block in [*parts.down_blocks, parts.mid_block]:
        extra = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
        answer = block(hidden_states=hidden, temb=embedded, **extra)
        hidden = answer[0] if isinstance(answer, tuple) else answer
    return hidden


def require_unet(network: nn.Module, source: str) -> None:
    """Raises ModelError where a model's network is no U-Net of diffusers with an encoder and a bottleneck."""
    if not isinstance(network, UNet2DModel | UNet2DConditionModel) or network.mid_block is None:
        raise ModelError(
            f"the network of {source} is a {type(network).__name__}, but a reward model of kind unet is made from the "
            "encoder and the bottleneck of a U-Net: take kind transformer for a transformer, or kind clip"
        )


def told_sizes(network: Any) -> bool:
    """Whether a U-Net takes the size of images and a pooled prompt beside the prompt's states, as SDXL's does."""
    return network.config.get("addition_embed_type") == "text_time"


class UNetEncoder:
    """The encoder and bottleneck of a model's U-Net; its decoder is dropped. Raises ModelError, as `require_unet`."""

    part = "unet"

    def __init__(self, model: Model, source: str) -> None:
        require_unet(model.network, source)
        drop_decoder(model.network)
        self.model = model
        self.channels, self.side = map_shape(model.network, model.latent_shape)

    def maps(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """[N,C,h,w] of the bottleneck, of latents x [N,*D] at training times t [N]."""
        network: Any = self.model.network
        if told_sizes(network):
            return inner_output(network.mid_block, lambda: self.model.predict(x, t, cond))
        return bottleneck(network, x, t, cond["text"].to(x))


def drop_decoder(network: nn.Module) -> None:
    """Takes away the half of a U-Net that its bottleneck does not need, and with it half of its memory."""
    kept = (*PARTS, "add_time_proj", "add_embedding")
    for name in [name for name, _ in network.named_children() if name not in kept]:
        setattr(network, name, nn.Identity())


def map_shape(network: Any, latent_shape: tuple[int, ...]) -> tuple[int, int]:
    """Channels of the bottleneck's features, and their side, for latents of this shape."""
    channels = network.config.block_out_channels[-1]
    return channels, latent_shape[-1] // 2 ** (len(network.config.block_out_channels) - 1)


def times(t: int, x: Tensor) -> Tensor:
    """[N] the training time t for each latent of x [N,*D]."""
    return torch.full((len(x),), t, dtype=torch.int64, device=x.device)
