"""Rewards that are a CLIP's cosine of image and prompt: CLIPScore, HPS v2, PickScore.

Nothing is loaded before a reward is asked for by name. All have a gradient in the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from tastemaker.rewards.base import RewardFunction, reward
from tastemaker.rewards.learned.clip_model import Clip, load_clip

HPS_REPOSITORY = "xswu/HPSv2"
PICK_SCORE = "yuvalkirstain/PickScore_v1"


def clip_score(source: str) -> RewardFunction:
    """The reward `clip-score:MODEL`: the cosine [B] in [-1,1] of a CLIP's features of image and prompt.

    Without CLIPScore's factor 2.5 and without its cut at 0 (Hessel et al. 2021, eq. 1), as it is used for training.
    MODEL is `bundled`, a transformers CLIP (a folder or a hub name), or a file with open_clip's names. Raises
    RewardError.
    """
    return cosine(load_clip(source, f"clip-score:{source}"), "clip_score")


def hps_v2(source: str) -> RewardFunction:
    """The reward `hps-v2:PATH_OR_REPO`: as `clip-score`, with the weights of HPS_v2_compressed.pt; about 0.27.

    ViT-H-14, no logit scale (tgxs002/HPSv2, hpsv2/img_score.py). Raises RewardError.
    """
    return _hps(source, "hps-v2", "HPS_v2_compressed.pt", "hps_v2")


def hps_v2_1(source: str) -> RewardFunction:
    """The reward `hps-v2.1:PATH_OR_REPO`: as `hps-v2` with HPS_v2.1_compressed.pt. The two are not to be compared."""
    return _hps(source, "hps-v2.1", "HPS_v2.1_compressed.pt", "hps_v2_1")


def pick_score(source: str) -> RewardFunction:
    """The reward `pick-score:PATH_OR_REPO`: exp(logit scale) times the cosine, about 20 (yuvalkirstain/PickScore).

    Raises RewardError.
    """
    return cosine(load_clip(source, f"pick-score:{source}"), "pick_score", scaled=True)


def _hps(source: str, name: str, file: str, title: str) -> RewardFunction:
    clip = load_clip(source, f"{name}:{source}", file)
    # The original's open_clip makes a tensor of the image first (`ToTensor`), then resizes the longest side (bicubic,
    # antialiased, as torchvision does for floats: without cutting the overshoot off) and adds black (`ResizeMaxSize`).
    return cosine(replace(clip, preprocess=replace(clip.preprocess, fit="pad", clamp=False)), title)


def cosine(clip: Clip, title: str, scaled: bool = False) -> RewardFunction:
    """The cosine of a CLIP's features as a reward called `title`, times exp(logit scale) where `scaled`."""
    factor = clip.model.logit_scale.exp().item() if scaled else 1.0

    @reward(differentiable=True)
    def score(x: Tensor, prompts: Sequence[str]) -> Tensor:
        return factor * clip.cosine(x, prompts)

    score.__name__ = title
    return score
