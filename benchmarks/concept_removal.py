"""Removing an object from what the bundled model draws, while the other object of the prompt stays (AlignProp §5, iii).

    python benchmarks/concept_removal.py [--seeds 3] [--work build/concept-removal]

Prompts "[colour] [object] and a [colour] circle" for the paper's "{concept} and books", the judge for OwlViT: AlignProp
climbs 1 - c, with c the judge's confidence in a circle of any colour, less 1 - c of the other object. How often the
judge finds a circle, and the other object by kind and colour, before training and at each evaluation. The judge is also
what is climbed, so the bundled CLIP is asked as well: which of the 64 captions with two kinds in these colours it finds
nearest. One run after the other, one thread each. A run that is there already is not made again. Writes
docs/results/concept-removal.{png,svg,json}, and concept-removal-images.png to be looked at.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import plain_axes, save_figure
from matplotlib.figure import Figure
from PIL import Image
from running import publish, records, run_all

from tastemaker.drawings.judge import see
from tastemaker.drawings.scene import KINDS, Request, Scene, Wanted, parse
from tastemaker.evaluation.image_grid import labelled_grid
from tastemaker.rewards.learned.clip_model import Clip, load_clip

PRESET = "alignprop-removal"
KEYS = ("removed", "kept")
PAIRS = list(itertools.product(KINDS, repeat=2))
SECOND = ("removed by CLIP", "kept by CLIP")


def shows(scene: Scene, wanted: Wanted, any_colour: bool = False) -> bool:
    """Whether the judge found such a thing."""
    return any(thing.kind == wanted.kind and (any_colour or thing.colour == wanted.colour) for thing in scene.things)


def rates(folder: Path) -> dict[str, float]:
    """Of an evaluation's images: how many show a circle, and how many the other object as the prompt has it."""
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    images = [np.asarray(Image.open(folder / sample["file"]).convert("RGB")) for sample in samples]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    scenes = see(x)
    wanted = [request.things for sample in samples if (request := parse(sample["prompt"])) is not None]
    found = [
        (shows(scene, gone, any_colour=True), shows(scene, stays), len(scene.things))
        for scene, (stays, gone) in zip(scenes, wanted, strict=True)
    ]
    second = by_clip(load_clip("bundled", "clip-score"), x, wanted)
    means = [*np.mean(found, axis=0), *np.mean(second, axis=0)]
    return {name: round(float(mean), 4) for name, mean in zip((*KEYS, "things", *SECOND), means, strict=True)}


def by_clip(clip: Clip, x: torch.Tensor, wanted: list[tuple[Wanted, ...]]) -> list[tuple[bool, bool]]:
    """Of each image, whether the nearest caption has a circle, and whether it has the other object's kind."""
    features = {
        both: clip.texts([Request((replace(both[0], kind=a), replace(both[1], kind=b))).caption() for a, b in PAIRS])
        for both in set(wanted)
    }
    with torch.no_grad():
        best = [
            PAIRS[int((features[both] @ image).argmax())] for both, image in zip(wanted, clip.images(x), strict=True)
        ]
    return [(both[1].kind in pair, both[0].kind in pair) for both, pair in zip(wanted, best, strict=True)]


def course(folder: Path) -> list[dict[str, float]]:
    """The rates at each evaluation of a run, with the reward queries and updates until then."""
    rounds, evaluations = records(folder)
    taken = [{"reward_queries": 0, "updates": 0}, *rounds]
    return [
        {
            "queries": taken[e["evaluation"]]["reward_queries"],
            "updates": sum(record["updates"] for record in taken[: e["evaluation"] + 1]),
            "reward": round(e["eval/reward/mean"], 4),
            **rates(folder / f"samples/round-{e['evaluation']:04d}"),
        }
        for e in evaluations
    ]


def table(courses: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Means over seeds before and after, each seed's end, and the courses."""

    def mean(place: int, key: str) -> float:
        return round(statistics.fmean(rows[place][key] for rows in courses), 3)

    ends, keys = (("before", 0), ("after", -1)), (*KEYS, *SECOND)
    return {
        "seeds": len(courses),
        **{f"{key} {when}": mean(place, key) for key in keys for when, place in ends},
        "each seed after": [{key: rows[-1][key] for key in keys} for rows in courses],
        "reward queries": mean(-1, "queries"),
        "courses": courses,
    }


def plot(courses: list[list[dict[str, float]]], out: Path) -> None:
    """Both rates by updates: a thin line a seed, the mean a thick one, dashed what the CLIP says."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis, updates = figure.subplots(), [row["updates"] for row in courses[0]]
    for key, label, colour in (("kept", "the other object", "#0b6e99"), ("removed", "the circle", "#d1495b")):
        values = np.array([[row[key] for row in rows] for rows in courses])
        axis.plot(updates, values.T, color=colour, alpha=0.3, lw=1)
        axis.plot(updates, values.mean(0), color=colour, lw=2, marker="o", ms=3, label=label)
        second = np.mean([[row[f"{key} by CLIP"] for row in rows] for rows in courses], axis=0)
        axis.plot(updates, second, color=colour, lw=1.2, ls="--", label=f"{label}, by the bundled CLIP")
    axis.set(xlabel="updates", ylabel="images that show it", ylim=(0, 1.02))
    plain_axes(axis)
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=2)
    save_figure(figure, out)


def strip(run: Path, out: Path, columns: int = 12) -> None:
    """Images of a run's fixed prompts at each of its evaluations, a row each."""
    folders = sorted((run / "samples").glob("round-*"))
    count = len(json.loads((folders[0] / "samples.json").read_text())["samples"])
    places = [int((place + 0.5) * count / columns) for place in range(columns)]
    images = [Image.open(folder / f"{place:03d}.png") for folder in folders for place in places]
    names = [f"round {int(folder.name.partition('-')[2])}" for folder in folders]
    labelled_grid(images, names, cell=64).save(out.with_name(f"{out.name}-images.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=1, help="runs at a time")
    parser.add_argument("--work", type=Path, default=Path("build/concept-removal"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/concept-removal"))
    arguments = parser.parse_args()
    runs = {seed: (arguments.work / f"seed-{seed}", [PRESET, "--seed", str(seed)]) for seed in range(arguments.seeds)}
    folders = run_all(runs, arguments.lanes)
    courses = [course(folder) for folder in folders.values()]
    plot(courses, arguments.out)
    strip(folders[0], arguments.out)
    result = table(courses)
    publish(result, arguments.out)


if __name__ == "__main__":
    main()
