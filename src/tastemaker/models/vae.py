"""The VAE of a latent model: latents to images and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tastemaker.models.library_logging import quiet


@dataclass(frozen=True)
class LatentImages:
    """An AutoencoderKL of diffusers as the map between a model's latents and its images.

    latents = (z - shift_factor) * scaling_factor for the VAE's own z; without a shift_factor in its config, as in
    Stable Diffusion 1.x and 2.x, nothing is subtracted.
    """

    network: Any

    @property
    def scale(self) -> int:
        """Pixels to a side of one element of the VAE's latents."""
        return 2 ** (len(self.network.config.block_out_channels) - 1)

    def place(self, device: torch.device) -> None:
        """Freezes the VAE and moves it, in float32: it is a small part of the work, and overflows in float16 for SD 2.x
        and SDXL."""
        self.network.requires_grad_(False).eval()
        with quiet():
            self.network.to(device, torch.float32)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [N,3,H,W] in [0,1], differentiable."""
        z = latents / self.network.config.scaling_factor
        if shift := self.network.config.get("shift_factor"):
            z = z + shift
        return (self.network.decode(z, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents [N,C,h,w] of images [N,3,H,W] in [0,1]: the means of the VAE's posterior."""
        z = self.network.encode(2 * images.to(self.network.device) - 1).latent_dist.mean
        if shift := self.network.config.get("shift_factor"):
            z = z - shift
        return z * self.network.config.scaling_factor
