"""Full names of built-in rewards: what some need after a colon, made on the spot where nothing ships."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

import clips
import learned
from tastemaker.rewards.jpeg import to_bytes


def _target(folder: Path) -> Path:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    Image.fromarray(to_bytes(image)[0].numpy()).save(folder / "target.png")
    return folder / "target.png"


ARGUMENTS: dict[str, Callable[[Path], Path | str]] = {
    "target-image": _target,
    "judge-removal": lambda folder: "circle",
    "concept-removal": lambda folder: f"books@{learned.detector_folder(folder / 'detector')}",
    "image-reward": lambda folder: learned.image_reward_folder(folder / "image-reward"),
    "hps-v2": lambda folder: clips.open_clip_file(folder),
    "hps-v2.1": lambda folder: clips.open_clip_file(folder, "HPS_v2.1_compressed.pt", seed=1),
    "pick-score": lambda folder: clips.clip_folder(folder),
}
QUOTING = ("ocr",)
"""Rewards whose prompts have a text in quotation marks."""


def named(name: str, folder: Path) -> str:
    """The reward's full name, with its file in `folder` where it needs one."""
    return f"{name}:{ARGUMENTS[name](folder)}" if name in ARGUMENTS else name


def asked(name: str, prompts: Sequence[str]) -> list[str]:
    """The prompts as the reward of this name wants them."""
    return [f'a sign that says "{prompt}"' for prompt in prompts] if name in QUOTING else list(prompts)
