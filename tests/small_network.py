"""A Stable Diffusion whose U-Net is a few layers, with adapters, that torch compiles in a second.

`small_network:small` names it as a model of another package.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tiny
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.network_weights import NetworkWeights
from tastemaker.models.stable_diffusion import SD


class SmallNetwork(ModelMixin, ConfigMixin):
    """Noise [N,4,H,W] from latents [N,4,H,W], times [N] and text states [N,L,16]; its rows do not know each other."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 3, padding=1)
        self.to_q, self.to_v, self.text = nn.Linear(16, 16), nn.Linear(16, 4), nn.Linear(16, 16)
        self.checkpointing = False

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any = None) -> None:
        self.checkpointing = True

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        told = self.text(encoder_hidden_states.mean(dim=1)) + torch.sin(t.float())[:, None]
        hidden = torch.tanh(self.conv(x).permute(0, 2, 3, 1) + told[:, None, None])
        if self.checkpointing and torch.is_grad_enabled():
            hidden = checkpoint(self.block, hidden, use_reentrant=False)
        else:
            hidden = self.block(hidden)
        assert isinstance(hidden, Tensor)
        return (self.to_v(hidden).permute(0, 3, 1, 2),)

    def block(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.to_q(hidden))


def small(precision: str = "fp32", device: Any = "cpu", network_device: Any = None) -> LatentUNet:
    """The same at each call."""
    model = LatentUNet(SD, tiny.pipeline(), precision, device, network_device)
    torch.manual_seed(1)
    model.network = SmallNetwork().requires_grad_(False).eval()
    model.weights = NetworkWeights(model.network)
    return model
