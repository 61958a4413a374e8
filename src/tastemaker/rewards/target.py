"""Likeness to one image as a reward: the thesis' first experiment (Alg. 1), which makes every sample that one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tastemaker.data.images import read_image, to_tensor
from tastemaker.errors import DataError, RewardError
from tastemaker.rewards.base import RewardFunction, reward


def target_image(path: str) -> RewardFunction:
    """The reward `target-image:PATH`: -10 sqrt(mean(e)) with e = (x - y)^2 (1 + y / mean(y)), at most 0.

    y is the image at `path` with values in [0,1], resized to x where their sizes differ. Its bright pixels count for
    more, so that an all-black x is no local optimum for a digit on black. Raises RewardError where no image can be
    read, or where it is all black, which would divide by zero.
    """
    image = _read(path)

    @reward(differentiable=True)
    def target_image(x: Tensor, prompts: Sequence[str]) -> Tensor:
        y = image.to(x.device, x.dtype)
        if y.shape[-2:] != x.shape[-2:]:
            y = F.interpolate(y, size=x.shape[-2:], mode="bilinear", antialias=True)
        error = ((x - y) ** 2 * (1 + y / y.mean())).mean(dim=(1, 2, 3))
        # The root has no gradient at 0, which would be NaN for an image that is the target.
        return -10 * error.clamp(min=torch.finfo(error.dtype).tiny).sqrt()

    return target_image


def _read(path: str) -> Tensor:
    """The image [1,3,H,W] in [0,1] of a file."""
    try:
        pixels = to_tensor(read_image(Path(path).expanduser(), f"the reward target-image:{path}"))
    except DataError as error:
        raise RewardError(str(error)) from error
    if not pixels.any():
        raise RewardError(f"the reward target-image:{path} weighs by brightness, but {path} is all black")
    return pixels.unsqueeze(0)
