"""JPEG size as a reward: what can be compressed well, or badly (DDPO §5.1, A.4)."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from tastemaker.rewards.base import reward

QUALITY = 95


def to_bytes(x: Tensor) -> Tensor:
    """Images [B,3,H,W] in [0,1] as uint8 [B,H,W,3], rounded as the public PyTorch code does."""
    return (x.detach().float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()


def jpeg_files(x: Tensor, quality: int = QUALITY) -> list[bytes]:
    """Each image of [B,3,H,W] in [0,1] as a JPEG file."""
    files = []
    # One after the other: all floats of a large batch at once do not fit into a processor's cache.
    for image in x.split(1):
        buffer = io.BytesIO()
        Image.fromarray(to_bytes(image)[0].numpy()).save(buffer, format="JPEG", quality=quality)
        files.append(buffer.getvalue())
    return files


def jpeg_kilobytes(x: Tensor) -> Tensor:
    """Size [B] of each image as a JPEG of quality 95, in kB of 1000 bytes."""
    return torch.tensor([len(file) / 1000 for file in jpeg_files(x)])


@reward()
def jpeg_compressibility(x: Tensor, prompts: Sequence[str]) -> Tensor:
    """Minus the size of the JPEG in kB."""
    return -jpeg_kilobytes(x)


@reward()
def jpeg_incompressibility(x: Tensor, prompts: Sequence[str]) -> Tensor:
    """The size of the JPEG in kB."""
    return jpeg_kilobytes(x)
