"""Small images of noise, and pairs of them, on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

PROMPTS = ("cat", "dog", "bear", "owl", "fox")


def image(number: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Smooth noise, another for each number."""
    values = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def pairs(folder: Path, count: int) -> Path:
    """A folder with a pairs.jsonl of `count` pairs: images 2n and 2n + 1, of which n mod 2 is preferred."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for n in range(count):
        for side in (0, 1):
            image(2 * n + side).save(folder / f"{n}-{side}.png")
        names = {f"image_{side}": f"{n}-{side}.png" for side in (0, 1)}
        rows.append({"prompt": PROMPTS[n % len(PROMPTS)], **names, "preferred": n % 2})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
