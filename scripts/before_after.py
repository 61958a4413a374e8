"""An image of a run for a page: prompts of its fixed grid, drawn at random, before and after.

The number under an image is its reward. Where the judge knows the prompt, a frame says whether the image shows it.

python scripts/before_after.py RUN docs/results/before-after.png [--prompts 6] [--each 4] [--round N]
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

FRAMES = {True: "#2a9d4a", False: "#c8102e", None: "none"}
"""By what the judge says: the image shows its prompt, it does not, or the judge cannot say."""


def rows(folder: Path) -> dict[str, list[dict]]:
    """A grid's samples by prompt, each with its image."""
    found: dict[str, list[dict]] = {}
    for entry in json.loads((folder / "samples.json").read_text())["samples"]:
        found.setdefault(entry["prompt"], []).append(entry | {"image": Image.open(folder / entry["file"])})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--each", type=int, default=4)
    parser.add_argument("--round", type=int, help="the last one when left out")
    arguments = parser.parse_args()
    grids = sorted((arguments.run / "samples").glob("round-*"))
    last = grids[-1] if arguments.round is None else arguments.run / f"samples/round-{arguments.round:04d}"
    before, after = rows(grids[0]), rows(last)
    each, every = arguments.each, list(before)
    prompts = sorted(random.Random(0).sample(every, min(arguments.prompts, len(every))), key=every.index)
    figure = Figure(figsize=(2 * each + 2.6, 0.98 * len(prompts) + 0.4), layout="constrained")
    axes = figure.subplots(len(prompts), 2 * each + 1, width_ratios=[1] * each + [0.25] + [1] * each, squeeze=False)
    for row, prompt in enumerate(prompts):
        for column, axis in enumerate(axes[row]):
            axis.set(xticks=[], yticks=[])
            if column == each:
                axis.spines[:].set_visible(False)
                continue
            entry = before[prompt][column] if column < each else after[prompt][column - each - 1]
            axis.spines[:].set(color=FRAMES[entry.get("correct")], linewidth=2.5)
            axis.imshow(entry["image"], interpolation="nearest")
            axis.set_xlabel(f"{entry['reward']:.2f}", fontsize=7, labelpad=1, color="#666")
        axes[row][0].set_ylabel(prompt, rotation=0, ha="right", va="center", fontsize=9)
    axes[0][0].set_title("before", loc="left", fontsize=10)
    axes[0][each + 1].set_title(f"after {int(last.name[-4:])} rounds", loc="left", fontsize=10)
    figure.savefig(arguments.out, dpi=100)


if __name__ == "__main__":
    main()
