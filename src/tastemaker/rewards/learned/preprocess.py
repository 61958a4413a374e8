"""Images as an image network wants them: resized, cropped or padded, and normalised, with a gradient.

The tensor twin of the image processors of transformers and open_clip, which work on PIL images. It rounds nothing to
256 levels, and is otherwise the same to the last digits of the resampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tastemaker.errors import RewardError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_RESAMPLING: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Preprocess:
    """What a network wants its images to be: `size` (height, width) pixels, values (x - mean) / std.

    `fit` says how an image of another shape gets there: `crop` resizes its shortest side to `shortest` and cuts out
    the middle; `pad` resizes its longest side and fills up with black; `stretch` resizes both sides.
    """

    size: tuple[int, int]
    shortest: int = 0
    fit: Literal["crop", "pad", "stretch"] = "crop"
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    resampling: Literal["bilinear", "bicubic"] = "bicubic"
    clamp: bool = True
    """Whether values are cut to [0, 1] after resizing, beyond which bicubic weights overshoot at edges: images of bytes
    are, as PIL's. A model whose original resizes tensors of floats has seen the overshoot."""

    def __call__(self, x: Tensor) -> Tensor:
        """Images [B,3,H,W] in [0,1] to [B,3,*size], differentiable and on their device."""
        size = self.inner(x.shape[-2], x.shape[-1])
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode=self.resampling, antialias=True, align_corners=False)
            x = x.clamp(0, 1) if self.clamp else x
        x = _centred(x, self.size)
        mean, std = (torch.tensor(v, device=x.device, dtype=x.dtype).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std

    def inner(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image of `height` by `width` is resized to, before what is over is cut or what lacks added.

        Lengths are cut to whole pixels as transformers does for `crop`, and rounded as open_clip does for `pad`.
        """
        if self.fit == "stretch":
            return self.size
        if self.fit == "pad":
            scale = min(self.size) / max(height, width)
            return round(height * scale), round(width * scale)
        short = self.shortest or min(self.size)
        if height <= width:
            return short, int(short * width / height)
        return int(short * height / width), short


def _centred(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of x, with black around it where it is smaller."""
    height, width = x.shape[-2:]
    down, right = max(0, size[0] - height), max(0, size[1] - width)
    if down or right:
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
    top, left = (x.shape[-2] - size[0]) // 2, (x.shape[-1] - size[1]) // 2
    return x[..., top : top + size[0], left : left + size[1]]


def preprocess_of(config: Mapping[str, Any]) -> Preprocess:
    """The tensor twin of a transformers image processor, from its settings (`processor.to_dict()`).

    Raises RewardError for a processor that does something else than resizing, cropping and normalising.
    """
    size, crop = _pixels(config["size"]), config.get("crop_size")
    resampling = _RESAMPLING.get(int(config.get("resample", 3)))
    cropped = bool(config.get("do_center_crop")) and crop is not None
    known = config.get("do_resize", True) and config.get("do_rescale", True) and not config.get("do_pad")
    if resampling is None or not known or (isinstance(size, int) and not cropped):
        raise RewardError(
            f"the image processor {config.get('image_processor_type', '')} does something else than resizing "
            "(bilinear or bicubic), cropping and normalising images, which has no twin with a gradient here"
        )
    normal = config.get("do_normalize", True)
    mean = tuple(config["image_mean"]) if normal else (0.0,) * 3
    std = tuple(config["image_std"]) if normal else (1.0,) * 3
    if isinstance(size, int):
        inner = _pixels(crop)
        return Preprocess(_both(inner), size, "crop", mean, std, resampling)
    return Preprocess(size, fit="stretch", mean=mean, std=std, resampling=resampling)


def _pixels(value: Any) -> int | tuple[int, int]:
    """What transformers has written a size as over the years: a number, a pair, or names and numbers."""
    if isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        if value.get("shortest_edge"):
            return int(value["shortest_edge"])
        return int(value["height"]), int(value["width"])
    if isinstance(value, Sequence):
        return int(value[0]), int(value[1])
    raise RewardError(f"an image processor's size must be a number, a pair, or height and width, not {value!r}")


def _both(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
