"""Aesthetic predictors in the form of LAION's: an affine map of a CLIP's image feature, whatever the prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from tastemaker.errors import RewardError
from tastemaker.rewards.base import RewardFunction, reward
from tastemaker.rewards.learned.clip_model import BUNDLED, load_clip
from tastemaker.rewards.learned.weights import downloaded, read_weights

LAION = "sac+logos+ava1-l14-linearMSE.pth"
FILE = "aesthetic.safetensors"
CLIP_OF = {768: "openai/clip-vit-large-patch14", 128: "bundled"}
"""The CLIP whose features a head was fitted on, by their width, where it does not lie beside the head."""
_LAYER = re.compile(r"^(?:layers\.)?(\d+)\.(weight|bias)$")

Layers = tuple[tuple[Tensor, Tensor], ...]


def aesthetic(source: str) -> RewardFunction:
    """The reward `aesthetic:WEIGHTS`: a score [B] of images, of a head on a CLIP's image feature of length 1.

    WEIGHTS is `bundled`, a file of LAION's form (`sac+logos+ava1-l14-linearMSE.pth`, or safetensors), a hub name of a
    repository that has that file, or a folder with a head and its CLIP. LAION's are about 1 to 10, with CLIP ViT-L/14
    (christophschuhmann/improved-aesthetic-predictor). Raises RewardError.
    """
    name, path = f"aesthetic:{source}", BUNDLED if source == "bundled" else Path(source).expanduser()
    folder = path if path.is_dir() else None
    if folder:
        path = next((folder / file for file in (FILE, LAION) if (folder / file).is_file()), folder / FILE)
    elif "/" in source and not path.exists() and not path.suffix:
        path = downloaded(source, LAION, name)
    if not path.is_file():
        raise RewardError(
            f"the reward {name} has no head: there is no file {path}; LAION's is {LAION}, from "
            "https://github.com/christophschuhmann/improved-aesthetic-predictor"
        )
    layers = head(read_weights(path, name), name)
    width = layers[0][0].shape[1]
    beside = folder is not None and (folder / "config.json").is_file()
    if not beside and width not in CLIP_OF:
        raise RewardError(
            f"the reward {name} has a head for features of {width} numbers, and no CLIP with such beside it: put the "
            f"head as {FILE} into the folder of its transformers CLIP, and give that folder"
        )
    clip = load_clip(str(folder) if beside else CLIP_OF[width], name)
    found = clip.model.config.projection_dim
    if found != width:
        raise RewardError(f"the reward {name} has a head for features of {width} numbers, but its CLIP makes {found}")

    @reward(differentiable=True)
    def aesthetic(x: Tensor, prompts: Sequence[str]) -> Tensor:
        return apply(layers, clip.images(x))

    return aesthetic


def apply(layers: Layers, features: Tensor) -> Tensor:
    """Scores [B] of features [B,D]: linear layers with nothing between them (dropout is for training)."""
    for weight, bias in layers:
        features = F.linear(features, weight.to(features.device), bias.to(features.device))
    return features.squeeze(-1)


def head(state: Mapping[str, Tensor], name: str = "aesthetic") -> Layers:
    """The layers of a state dict `layers.N.weight`, `layers.N.bias`, by rising N. Raises RewardError."""
    found: dict[tuple[int, str], Tensor] = {}
    unexpected = []
    for key, value in state.items():
        match = _LAYER.match(key)
        if match:
            found[int(match[1]), match[2]] = value.float()
        else:
            unexpected.append(key)
    numbers = sorted({number for number, _ in found})
    absent = [f"layers.{n}.{kind}" for n in numbers for kind in ("weight", "bias") if (n, kind) not in found]
    wide = [tuple(found[n, "weight"].shape) for n in numbers if (n, "weight") in found]
    joined = bool(wide) and wide[-1][0] == 1 and all(after[1] == before[0] for before, after in pairwise(wide))
    if unexpected or absent or not joined:
        found_instead = (
            f"there is {unexpected[0]}" if unexpected else f"{absent[0]} is missing" if absent else f"shapes are {wide}"
        )
        raise RewardError(
            f"the reward {name} needs a head of linear layers `layers.N.weight` and `layers.N.bias`, each as wide as "
            f"the one before it and the last of one number; in its file {found_instead}"
        )
    return tuple((found[n, "weight"], found[n, "bias"]) for n in numbers)
