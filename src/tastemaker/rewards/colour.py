"""Colourfulness as a reward: the thesis' second experiment (App. A), after Pinto et al. 2023."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from skimage.color import rgb2lab
from torch import Tensor

from tastemaker.rewards.base import reward

VIVID = 10.0
"""A pixel is vivid where a^2 + b^2 is greater: the square of its chroma, so that a chroma of 3.2 will do."""
HUES = 7


@reward()
def colourfulness(x: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B] in [0, log2 7]: the share of vivid pixels times the entropy of the hues, in bits, in the CIELAB space.

    A hue is atan2(b, a) of any pixel, vivid or not, in one of 7 equal bins.
    """
    lab = rgb2lab(x.detach().float().clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy())
    a, b = lab[..., 1], lab[..., 2]
    vivid = (a**2 + b**2 > VIVID).mean(axis=(1, 2))
    hues = np.arctan2(b, a)
    counts = np.stack([np.histogram(hue, HUES, (-np.pi, np.pi))[0] for hue in hues])
    shares = counts / hues[0].size
    entropy = -(shares * np.log2(shares, where=shares > 0, out=np.zeros_like(shares))).sum(axis=1)
    return torch.from_numpy(vivid * entropy).float()


@reward(differentiable=True)
def soft_colourfulness(x: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B] in [0, log2 7]: `colourfulness` with a gradient, for images [B,3,H,W] in [0,1].

    A pixel is vivid by sigmoid((a^2 + b^2 - 10) / 10) instead of a step, and its hue counts for the two nearest of the
    7 bins by its distance to their middles. Grey pixels have no hue, and their atan2 no gradient: `_EPS` keeps it
    finite.
    """
    a, b = _ab(x.clamp(0, 1))
    vivid = torch.sigmoid((a.square() + b.square() - VIVID) / VIVID).mean(dim=(1, 2))
    turn = torch.atan2(b, torch.where(a.square() + b.square() > _EPS, a, a.detach() + _EPS)) / (2 * torch.pi) + 0.5
    middle = (torch.arange(HUES, device=x.device, dtype=x.dtype) + 0.5) / HUES
    far = (turn.flatten(1)[:, None] - middle[:, None]).abs()  # [B,7,pixels], in turns
    shares = (1 - HUES * torch.minimum(far, 1 - far)).clamp(min=0).mean(dim=2)
    entropy = -(shares * shares.clamp(min=_EPS).log2()).sum(dim=1)
    return vivid * entropy


_EPS = 1e-6
_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
"""Linear sRGB to CIE XYZ, as scikit-image has it."""
_WHITE = (0.95047, 1.0, 1.08883)
"""D65, 2 degrees."""


def _ab(x: Tensor) -> tuple[Tensor, Tensor]:
    """The colour axes of CIELAB, [B,H,W] each, of sRGB images [B,3,H,W] in [0,1]."""
    linear = torch.where(x > 0.04045, ((x.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, x / 12.92)
    matrix = torch.tensor(_XYZ, device=x.device, dtype=x.dtype) / torch.tensor(_WHITE, device=x.device).to(x)[:, None]
    xyz = torch.einsum("ij,bjhw->bihw", matrix, linear)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    return 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])
