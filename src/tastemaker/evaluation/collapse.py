"""Detectors of the two ways in which trained models' images fall apart most often: all alike, or covered by a grid.

Both are functions of images alone, at any size, and are compared with the base model's on the same prompts and seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PROMINENCE = 30.0
"""How many times the power about it a frequency must have to count as a peak. In noise one frequency in exp(30 / 1.78),
or 20 million, has: the power of a frequency of noise is exponentially distributed, and the geometric mean about it is
exp(-0.577) = 1 / 1.78 of its mean."""
LONGEST_PERIOD = 20
"""Of a grid, in pixels: twice the 8 pixels of a latent element, with some room."""
LEAST_SIDE = 16
"""Of images whose spectrum says anything of a grid, in pixels; smaller ones have none."""
SMALL = 16
"""Side in pixels of the images that are compared with each other."""


def grid_power(x: Tensor) -> Tensor:
    """[B] the share of an image's fine structure that repeats as in a grid or checkerboard, in [0, 1].

    Of images [B,3,H,W] in [0,1]: in the power spectrum of the mean of the channels under a Hann window, the power of
    frequencies that stand out from those about them by a factor of PROMINENCE, over that of all frequencies with a
    period of at most LONGEST_PERIOD pixels (a quarter of the image, where that is less). Edges and textures are spread
    over the frequencies; a pattern with a fixed period is at a few. Structure below the rounding to 8 bits counts as
    spread.
    """
    return torch.cat([_grid_power(image) for image in x.split(1)]) if len(x) else x.new_zeros(0, dtype=torch.float64)


def _grid_power(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    if min(height, width) < LEAST_SIDE:
        return x.new_zeros(len(x), dtype=torch.float64)
    grey = x.double().mean(dim=1)
    window = torch.outer(torch.hann_window(height, dtype=torch.float64), torch.hann_window(width, dtype=torch.float64))
    centred = grey - (grey * window).sum(dim=(1, 2), keepdim=True) / window.sum()
    power = torch.fft.fft2(centred * window).abs().square()
    rounding = window.square().sum() / (12 * 255**2)  # the power at each frequency of noise of one level's width
    # The geometric mean of a ring of 7x7 frequencies without the 3x3 in its middle, into which the window spreads one.
    logs = F.pad((power + 1e-3 * rounding).log(), (3, 3, 3, 3), mode="circular")
    wide = F.avg_pool2d(logs, 7, 1) * 49
    middle = F.avg_pool2d(logs[:, 2:-2, 2:-2], 3, 1) * 9
    around = torch.exp((wide - middle) / 40)
    y, x_ = torch.meshgrid(torch.fft.fftfreq(height), torch.fft.fftfreq(width), indexing="ij")
    fine = torch.hypot(y, x_) >= max(1 / LONGEST_PERIOD, 4 / min(height, width))
    peak = (power > PROMINENCE * around) & (power > PROMINENCE * rounding) & fine
    # The window spreads a frequency over its neighbours, which belong to the peak too.
    spread = F.max_pool2d(F.pad(peak.double(), (1, 1, 1, 1), mode="circular"), 3, 1) > 0
    above = (power - around).clamp(min=0)
    return (above * (spread & fine)).sum(dim=(1, 2)) / ((power + rounding) * fine).sum(dim=(1, 2))


def differences(x: Tensor, prompts: Sequence[str]) -> tuple[Tensor | None, Tensor | None]:
    """How much an image differs from the others of its prompt, and from those of other prompts, in [0, 1].

    [B] each: the mean over those images of the root of the mean squared difference of images [B,3,H,W] in [0,1], which
    are scaled to at most SMALL pixels before, so that noise does not count. 0 where all are the same image. None where
    no prompt has two images, or where there is one prompt. An image without a partner has a NaN.
    """
    flat = _small(x).flatten(1)
    apart = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") / flat.shape[1] ** 0.5
    index = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    number = torch.tensor([index[prompt] for prompt in prompts])
    same = number[:, None] == number[None]
    return _mean(apart, same & ~torch.eye(len(x), dtype=torch.bool)), _mean(apart, ~same)


def _small(x: Tensor) -> Tensor:
    side = max(x.shape[-2:])
    if side <= SMALL:
        return x.double()
    size = [max(1, round(length * SMALL / side)) for length in x.shape[-2:]]
    return F.interpolate(x.double(), size=size, mode="area")


def _mean(values: Tensor, chosen: Tensor) -> Tensor | None:
    """[B] of values [B,B] over those chosen in each row; None where none are in any."""
    count = chosen.sum(dim=1)
    found = (values * chosen).sum(dim=1) / count.clamp(min=1)
    return torch.where(count > 0, found, torch.nan) if bool(count.any()) else None
