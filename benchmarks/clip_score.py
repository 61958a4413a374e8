"""CLIPScore as the reward: what the independent judge says of prompts that were trained on, and of unseen ones.

    python benchmarks/clip_score.py [--seeds 3] [--work build/clip-score]

The bundled model without guidance, on `[number] [colour] [objects]`. AlignProp on CLIPScore, AlignProp on CLIPScore and
the made-up taste of the bundled aesthetic head together, and DDPO on CLIPScore with 20 times as many images. The
judge has no part in any.
Two runs at a time, one thread each. A run that is there already is not made again. Writes
docs/results/clip-score.{png,svg,json}.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from figures import plain_axes, save_figure
from matplotlib.figure import Figure
from running import publish, records, run_all

EVALUATION = ["evaluation.every=8", "evaluation.prompts=32"]
KINDS: dict[str, tuple[str, list[str]]] = {
    "alignprop": ("AlignProp, CLIPScore", ["alignprop-clip", *EVALUATION]),
    "both": (
        "AlignProp, CLIPScore and taste",
        ["alignprop-clip", *EVALUATION, "--reward", "standardise(clip-score) + 0.5*standardise(aesthetic)"],
    ),
    "ddpo": ("DDPO, CLIPScore", ["ddpo-clip"]),
}  # fmt: skip
"""What each is called, and its words."""
SHOWN = {
    "eval/judge/correct": "right, trained prompts (judge)",
    "eval/unseen/judge/correct": "right, unseen prompts (judge)",
    "eval/diversity": "diversity",
}


def points(folder: Path, key: str) -> tuple[list[float], list[float]]:
    """A measure of a run's evaluations by the reward queries before them."""
    rounds, evaluations = records(folder)
    each = rounds[0]["reward_queries"]
    return [e["evaluation"] * each for e in evaluations], [e[key] for e in evaluations]


def table(folders: dict[tuple[str, int], Path]) -> dict[str, Any]:
    """First and last evaluations of each kind: means over seeds, and each seed's."""
    out: dict[str, Any] = {}
    for kind in dict.fromkeys(kind for kind, _ in folders):
        runs = [records(folder) for (name, _), folder in folders.items() if name == kind]
        out[kind] = {"seeds": len(runs), "reward queries": runs[0][0][-1]["reward_queries"]}
        keys = [
            key for key in runs[0][1][-1] if key in SHOWN or key.startswith(("eval/reward/parts", "eval/reward/base"))
        ]
        for key in keys:
            ends = [(evaluations[0][key], evaluations[-1][key]) for _, evaluations in runs]
            out[kind][key] = {
                "before": round(statistics.fmean(before for before, _ in ends), 3),
                "after": round(statistics.fmean(after for _, after in ends), 3),
                "each": [[round(value, 3) for value in pair] for pair in ends],
            }
    return out


def plot(folders: dict[tuple[str, int], Path], out: Path) -> None:
    """A panel a measure, a line a run."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    kinds = list(dict.fromkeys(kind for kind, _ in folders))
    axes = figure.subplots(1, len(SHOWN))
    for axis, (key, name) in zip(axes, SHOWN.items(), strict=True):
        for (kind, seed), folder in folders.items():
            x, y = points(folder, key)
            label = KINDS[kind][0] if seed == 0 else None
            axis.plot(x, y, f"C{kinds.index(kind)}", marker="o", ms=3, lw=1.2, label=label)
        axis.set(title=name, xlabel="reward queries", ylim=(0, 1 if "judge" in key else None))
        # AlignProp's 384 queries beside DDPO's 7,680.
        axis.set_xscale("symlog", linthresh=100, linscale=0.5)
        axis.set_xticks([0, 100, 400, 2000, 7680], ["0", "100", "400", "2,000", "7,680"], fontsize=8)
        axis.set_xlim(-5, 9500)
        plain_axes(axis)
    axes[1].legend(frameon=False, fontsize=8, loc="lower right")
    save_figure(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(KINDS), help="comma-separated kinds of run")
    parser.add_argument("--work", type=Path, default=Path("build/clip-score"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/clip-score"))
    arguments = parser.parse_args()
    runs = {
        (kind, seed): (arguments.work / f"{kind}-{seed}", [*KINDS[kind][1], "--seed", str(seed)])
        for kind in arguments.only.split(",")
        for seed in range(arguments.seeds)
    }
    folders = run_all(runs)
    plot(folders, arguments.out)
    publish(table(folders), arguments.out)


if __name__ == "__main__":
    main()
