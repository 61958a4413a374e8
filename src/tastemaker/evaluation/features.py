"""Feature extractors of images by name, and distances between sets of features, by torchmetrics."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tastemaker.errors import DataError, RewardError
from tastemaker.evaluation.distribution_metrics import fid, kid
from tastemaker.importing import working_directory_first
from tastemaker.rewards.learned.clip_model import Clip, load_clip
from tastemaker.rewards.user_code import call

KID_SUBSET = 1000
"""Images in a subset of KID; fewer images are one subset, for which nothing is drawn."""


@dataclass(frozen=True)
class Extractor:
    """What computes features [B,F] of images [B,3,H,W] in [0,1]."""

    name: str
    features: Callable[[Tensor], Tensor]
    clip: Clip | None = None
    """The CLIP whose image features they are, and which knows texts too; None for other networks."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """[B,F] float32 on the CPU. Raises DataError where the answer is of another shape or not finite."""
        found = call(lambda: self.features(images), f"the feature extractor {self.name}")
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            raise DataError(
                f"the feature extractor {self.name} answered {shape} for {len(images)} images, but must return a "
                "tensor [images, features]"
            )
        if not found.isfinite().all():
            raise DataError(f"the feature extractor {self.name} returned features that are not finite")
        return found.float().cpu()


def load_features(name: str, device: str = "cpu") -> Extractor:
    """`bundled` or another CLIP (a folder, a hub name, a file of open_clip's), or `module:function` of images.

    A function is given images [B,3,H,W] in [0,1] and returns [B,F]. Raises RewardError where there is none of this
    name.
    """
    if ":" in name and not Path(name).exists():
        function = _function(name)
        return Extractor(name, lambda images: function(images.to(device)))
    try:
        clip = load_clip(name, f"clip-score:{name}")
    except RewardError as error:
        raise RewardError(f"the feature extractor {name} cannot be loaded: {error}") from error
    return Extractor(f"CLIP {name}", lambda images: clip.images(images.to(device)), clip)


def _function(name: str) -> Callable[[Tensor], Tensor]:
    module, _, attribute = name.partition(":")
    what = f"the feature extractor {name} cannot be imported: module {module!r}"
    with working_directory_first():
        found = call(lambda: importlib.import_module(module), what)
    function = call(lambda: functools.reduce(getattr, attribute.split("."), found), what)
    if not callable(function):
        raise RewardError(f"the feature extractor {name} is no function of images")
    return function


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """FID of features [B,F] and [C,F] that are there already.

    With more numbers than images it is computed in the space that all of them span, in which it is the same.
    """
    x, y = features.double(), others.double()
    if x.shape[1] > len(x) + len(y):
        centre = y.mean(dim=0)
        both = torch.cat([x - centre, y - centre])
        basis = torch.linalg.qr(both.T).Q
        x, y = (x - centre) @ basis, (y - centre) @ basis
    return fid(x[:, :, None, None], y[:, :, None, None], _Given(x.shape[1]), batch=len(x) + len(y))


def kernel_distance(features: Tensor, others: Tensor, subsets: int = 100) -> float:
    """KID of features [B,F] and [C,F] that are there already: of all images, or `subsets` of KID_SUBSET."""
    size = min(KID_SUBSET, len(features), len(others))
    whole = len(features) == len(others) == size
    x, y = features.double()[:, :, None, None], others.double()[:, :, None, None]
    mean, _ = kid(x, y, _Given(features.shape[1]), subsets=1 if whole else subsets, subset_size=size, batch=len(x))
    return mean


class _Given(nn.Module):
    """In the place of an extractor: what it is given are features already."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)
