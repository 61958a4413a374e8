"""An image of runs for a page: prompts of their fixed grid, drawn at random, before and after.

The number under an image is its reward, where there is one run: rewards of several may have other scales. Where the
judge knows the prompt, a frame says whether the image shows it.

python scripts/before_after.py RUN docs/results/before-after.png [--prompts 6] [--each 4] [--round N]
python scripts/before_after.py RUN RUN docs/results/demo-preferences.png --titles "iteration 1" "iteration 2"
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
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--each", type=int, default=4)
    parser.add_argument("--round", type=int, help="the last one when left out")
    parser.add_argument("--titles", nargs="+", help="of the runs; the rounds done when left out")
    arguments = parser.parse_args()
    first = sorted((arguments.runs[0] / "samples").glob("round-*"))[0]
    last = [
        sorted((run / "samples").glob("round-*"))[-1] if arguments.round is None
        else run / f"samples/round-{arguments.round:04d}"
        for run in arguments.runs
    ]  # fmt: skip
    titles = ["before", *(arguments.titles or [f"after {int(folder.name[-4:])} rounds" for folder in last])]
    groups = [rows(folder) for folder in (first, *last)]
    each, every = arguments.each, list(groups[0])
    prompts = sorted(random.Random(0).sample(every, min(arguments.prompts, len(every))), key=every.index)
    figure = Figure(figsize=(len(groups) * each + 2.6, 0.98 * len(prompts) + 0.4), layout="constrained")
    widths = [1.0] * each + ([0.25] + [1.0] * each) * len(last)
    axes = figure.subplots(len(prompts), len(widths), width_ratios=widths, squeeze=False)
    for row, prompt in enumerate(prompts):
        for column, axis in enumerate(axes[row]):
            group, place = divmod(column, each + 1)
            axis.set(xticks=[], yticks=[])
            if place == each:
                axis.spines[:].set_visible(False)
                continue
            entry = groups[group][prompt][place]
            axis.spines[:].set(color=FRAMES[entry.get("correct")], linewidth=2.5)
            axis.imshow(entry["image"], interpolation="nearest")
            if len(last) == 1:
                axis.set_xlabel(f"{entry['reward']:.2f}", fontsize=7, labelpad=1, color="#666")
        axes[row][0].set_ylabel(prompt, rotation=0, ha="right", va="center", fontsize=9)
    for group, title in enumerate(titles):
        axes[0][group * (each + 1)].set_title(title, loc="left", fontsize=10)
    figure.savefig(arguments.out, dpi=100)


if __name__ == "__main__":
    main()
