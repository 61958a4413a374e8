"""Draws docs/results/pixel-models.png: 32 images of each of the two small models.

python scripts/digits/show.py [--work benchmarks/models] [--out docs/results/pixel-models.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tastemaker.data.prompts import load_prompts
from tastemaker.diffusion.sde import ddim
from tastemaker.evaluation.images import contact_sheet, images, to_pil
from tastemaker.models import load_model
from tastemaker.types import Draw

COUNT, STEPS = 32, 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/models"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/pixel-models.png"))
    arguments = parser.parse_args()
    shown = []
    for name, prompts in (("digits", "none"), ("drawn32", "bundled-kinds")):
        model, known = load_model(str(arguments.work / name)), load_prompts(prompts).prompts
        chosen = tuple(known[number * len(known) // COUNT] for number in range(COUNT))
        draw = Draw(0, 0, chosen, (0,) * COUNT, tuple(range(COUNT)))
        shown.append(images(model, draw, ddim(model.process.grid(STEPS), 1.0), guidance=1.0, batch=COUNT))
    # Side by side, eight of each to a row.
    rows = torch.stack([part.view(-1, 8, *part.shape[1:]) for part in shown], dim=1).flatten(0, 2)
    contact_sheet(to_pil(rows), columns=16, cell=64).save(arguments.out)


if __name__ == "__main__":
    main()
