"""Full names of built-in rewards: what some need after a colon, made on the spot where nothing ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

import clips
from tastemaker.rewards.jpeg import to_bytes


def _target(folder: Path) -> Path:
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    Image.fromarray(to_bytes(picture)[0].numpy()).save(folder / "target.png")
    return folder / "target.png"


ARGUMENTS: dict[str, Callable[[Path], Path]] = {
    "target-image": _target,
    "hps-v2": lambda folder: clips.open_clip_file(folder),
    "hps-v2.1": lambda folder: clips.open_clip_file(folder, "HPS_v2.1_compressed.pt", seed=1),
    "pick-score": lambda folder: clips.clip_folder(folder),
}


def named(name: str, folder: Path) -> str:
    """The reward's full name, with its file in `folder` where it needs one."""
    return f"{name}:{ARGUMENTS[name](folder)}" if name in ARGUMENTS else name
