"""The device of a reward's network."""

from __future__ import annotations

import torch
from torch import Tensor


def device_for(x: Tensor) -> torch.device:
    """The device of images, but an accelerator where there is one: rewards are given their images on the CPU."""
    return x.device if x.is_cuda or not torch.cuda.is_available() else torch.device("cuda")
