"""Removing an object from what the bundled model draws, while the other object of the prompt stays (AlignProp §5, iii).

    python benchmarks/concept_removal.py [--seeds 3] [--work build/concept-removal]

Prompts "[colour] [object] and a [colour] circle" for the paper's "{concept} and books", the judge for OwlViT: AlignProp
climbs 1 - c, with c the judge's confidence in a circle of any colour. Twice: alone, and with an anchor on the base
model's own pictures of the other objects. How often the judge finds the circle and the other object, by kind and
colour, before training and at each evaluation. One run after the other, one thread. A run that is there already is not
made again. Writes docs/concept-removal.{png,svg,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from runs import records, run_all

from tastemaker.drawings.scene import Scene, Wanted, parse
from tastemaker.evaluation.judge import see
from tastemaker.prompts import load_prompts

PRESET = "alignprop-removal"
ANCHOR = ["anchor.weight=30", "anchor.pictures=112", "anchor.rows=16"]
LABELS = {"alone": "AlignProp", "anchored": "AlignProp with an anchor"}
KEYS = ("removed", "kept")


def anchor_pictures(folder: Path) -> Path:
    """The base model's own pictures of single objects that are no circles, with their prompts."""
    if not (folder / "metadata.jsonl").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        prompts = folder.parent / "others.txt"
        prompts.write_text("\n".join(p for p in load_prompts("bundled-single").prompts if "circle" not in p))
        words = ["--model", "bundled", "--prompts", str(prompts), "--n", "2", "--out", str(folder)]
        command = [sys.executable, "-m", "tastemaker.cli.main", "sample", *words]
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
        made = json.loads((folder / "samples.json").read_text())
        lines = [json.dumps({"file_name": one["file"], "prompt": one["prompt"]}) for one in made]
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def shows(scene: Scene, wanted: Wanted, any_colour: bool = False) -> bool:
    """Whether the judge found such a thing."""
    return any(thing.kind == wanted.kind and (any_colour or thing.colour == wanted.colour) for thing in scene.things)


def rates(folder: Path) -> dict[str, float]:
    """Of an evaluation's pictures: how many show a circle, and how many the other object as the prompt has it."""
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    pictures = [np.asarray(Image.open(folder / sample["file"]).convert("RGB")) for sample in samples]
    scenes = see(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255)
    wanted = [request.things for sample in samples if (request := parse(sample["prompt"])) is not None]
    found = [
        (shows(scene, gone, any_colour=True), shows(scene, stays), len(scene.things))
        for scene, (stays, gone) in zip(scenes, wanted, strict=True)
    ]
    return dict(zip((*KEYS, "things"), np.mean(found, axis=0).round(4).tolist(), strict=True))


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


def table(courses: dict[tuple[str, int], list[dict[str, float]]]) -> dict[str, Any]:
    """Each variant's means over seeds before and after, each seed's end, and the courses."""
    out: dict[str, Any] = {}
    for variant in dict.fromkeys(key[0] for key in courses):
        mine = [rows for key, rows in courses.items() if key[0] == variant]
        mean = lambda place, key, mine=mine: round(statistics.fmean(rows[place][key] for rows in mine), 3)  # noqa: E731
        out[variant] = {
            "seeds": len(mine),
            **{f"{key} {when}": mean(place, key) for key in KEYS for when, place in (("before", 0), ("after", -1))},
            "each seed after": [{key: rows[-1][key] for key in KEYS} for rows in mine],
            "reward queries": mean(-1, "queries"),
            "course": mine,
        }
    return out


def plot(courses: dict[tuple[str, int], list[dict[str, float]]], out: Path) -> None:
    """Both rates by updates, a panel a variant, a thin line a seed, the mean a thick one."""
    names = list(dict.fromkeys(key[0] for key in courses))
    figure = Figure(figsize=(4.2 * len(names), 3.4), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        mine = [rows for key, rows in courses.items() if key[0] == name]
        updates = [row["updates"] for row in mine[0]]
        for key, label, colour in (("kept", "the other object", "#0b6e99"), ("removed", "the circle", "#d1495b")):
            values = np.array([[row[key] for row in rows] for rows in mine])
            axis.plot(updates, values.T, color=colour, alpha=0.3, lw=1)
            axis.plot(updates, values.mean(0), color=colour, lw=2, marker="o", ms=3, label=label)
        axis.set(title=LABELS[name], xlabel="updates", ylim=(0, 1.02))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("pictures that show it (judge)")
    axes[0].legend(frameon=False, loc="lower left")
    figure.savefig(out.with_suffix(".svg"))
    figure.savefig(out.with_suffix(".png"), dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=1, help="runs at a time")
    parser.add_argument("--variants", default=",".join(LABELS), help="comma-separated")
    parser.add_argument("--work", type=Path, default=Path("build/concept-removal"))
    parser.add_argument("--out", type=Path, default=Path("docs/concept-removal"))
    arguments = parser.parse_args()
    variants = arguments.variants.split(",")
    extra = {"alone": []}
    if "anchored" in variants:
        extra["anchored"] = [*ANCHOR, f"anchor.source={anchor_pictures(arguments.work / 'others')}"]
    runs = {
        (name, seed): (arguments.work / f"{name}-{seed}", [PRESET, *extra[name], "--seed", str(seed)])
        for seed in range(arguments.seeds)
        for name in variants
    }
    courses = {key: course(folder) for key, folder in run_all(runs, arguments.lanes).items()}
    plot(courses, arguments.out)
    result = table(courses)
    arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: {k: v for k, v in one.items() if k != "course"} for name, one in result.items()}, indent=1))


if __name__ == "__main__":
    main()
