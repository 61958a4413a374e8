"""Value networks: what a noisy latent is worth, V(x_t, t, c) (thesis §6.5.1, App. B; DPOK's code)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any, Literal

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from tastemaker.diffusion.model import Model
from tastemaker.errors import ModelError
from tastemaker.models.attention_pool import AttentionPool
from tastemaker.models.unet_encoder import PARTS, bottleneck


def value_network(kind: Literal["unet", "cnn", "conv", "mlp"], model: Model) -> nn.Module:
    """A value network [N,*D], [N], [N,L,C] -> [N] for a model's latents, on the model's device, in float32.

    Call it before the model gets its adapters, which `unet` would copy.
    """
    channels = model.encode([""], 1.0).states["text"].shape[-1]
    if kind == "unet":
        if not isinstance(model.network, UNet2DModel | UNet2DConditionModel):
            raise ModelError(
                f"algorithm.value is unet, a copy of a U-Net's encoder, but the network of this model is a "
                f"{type(model.network).__name__}: take conv or mlp"
            )
        made: nn.Module = UNetValue(model.network, channels)
    elif kind == "cnn":
        made = DigitValue(model.latent_shape)
    elif kind == "conv":
        made = ConvValue(model.latent_shape, channels)
    else:
        made = ConditionalMLP(model.latent_shape, channels, times=len(model.process.times))
    return made.to(model.device)


class UNetValue(nn.Module):
    """A copy of a diffusers U-Net's encoder and bottleneck, and an attention pool on top: the thesis' reward model."""

    def __init__(self, unet: Any, text: int) -> None:
        super().__init__()
        for name in PARTS:
            setattr(self, name, copy.deepcopy(getattr(unet, name)).float().requires_grad_(True))
        width = unet.config.block_out_channels[-1]
        self.pool = AttentionPool(width, text, heads=4 if width % 4 == 0 else 1)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """[N] from latents [N,*D], training times [N] and text states [N,L,C]."""
        return self.pool(bottleneck(self, x, t, text), text)


class DigitValue(nn.Module):
    """The value network of the thesis' experiment 1 (App. B): a small classifier of digits, without time or text.

    For C channels: a 3x3 convolution to 6 C channels, 2x2 max-pooling, a linear layer to 24 and one to 10 outputs. How
    ten outputs become a value is not printed; here by one more linear layer, as experiment 2 adds to its classifier
    (§6.5.1), which starts at 0. The thesis starts from weights trained on MNIST's digits, these are random.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv = nn.Conv2d(channels, 6 * channels, kernel_size=3, stride=1, padding=1)
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2)
        self.fc1 = nn.Linear(6 * channels * (height // 2) * (width // 2), 24)
        self.fc2 = nn.Linear(24, 10)
        self.out = nn.Linear(10, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """[N] from latents [N,C,H,W]; times and text states are not looked at."""
        hidden = self.pool(torch.relu(self.conv(x))).flatten(1)
        return self.out(self.fc2(torch.relu(self.fc1(hidden)))).squeeze(-1)


class ConvValue(nn.Module):
    """A small fresh network for small latents, which is given the time and the text."""

    def __init__(self, shape: Sequence[int], text: int, width: int = 32) -> None:
        super().__init__()
        self.frequencies = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(width, width)
        self.text = nn.Linear(text, width)
        self.inner = nn.Sequential(nn.Conv2d(shape[0], width, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2))
        self.outer = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(4))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16 * width, 2 * width), nn.SiLU())
        self.out = nn.Linear(2 * width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """[N] from latents [N,*D], training times [N] and text states [N,L,C]."""
        cond = self.time(self.frequencies(t).to(x.dtype)) + self.text(text.mean(dim=1))
        hidden = self.outer(self.inner(x) + cond[:, :, None, None])
        return self.out(self.head(hidden)).squeeze(-1)


class ConditionalMLP(nn.Module):
    """DPOK's value network: three linear layers of 256 on latent and text, each scaled by a learned code of the time.

    The public code has a row of the code for each sampler step; here there is one for each training time. Its text is
    the projected, pooled feature of CLIP; the projection is a linear map before a linear layer, and is left out. It
    starts its weights as Xavier's normal distribution, its codes uniformly in [0, 1].
    """

    def __init__(self, shape: Sequence[int], text: int, width: int = 256, times: int = 1000) -> None:
        super().__init__()
        self.times = times
        sizes = [prod(shape) + text, width, width, width]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.codes = nn.ModuleList(nn.Embedding(times, width) for _ in self.layers)
        self.out = nn.Linear(width, 1)
        for code in self.codes:
            nn.init.uniform_(code.weight)  # pyright: ignore[reportArgumentType]
        for layer in (*self.layers, self.out):
            nn.init.xavier_normal_(layer.weight)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """[N] from latents [N,*D], training times [N] and text states [N,L,C], or one pooled state each, [N,1,C]."""
        hidden = torch.cat([x.flatten(1), text.mean(dim=1)], dim=1)
        # Times in continuous time have the code of the whole number below.
        row = t.long().clamp(max=self.times - 1)
        for layer, code in zip(self.layers, self.codes, strict=True):
            hidden = torch.relu(layer(hidden) * code(row))
        return self.out(hidden).squeeze(-1)
