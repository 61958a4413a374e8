"""Colourfulness as a reward: the thesis' second experiment (App. A), after Pinto et al. 2023."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from skimage.color import rgb2lab
from torch import Tensor

from tastemaker.rewards.contract import reward

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
