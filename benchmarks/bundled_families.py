"""GRPO and AlignProp on the bundled models of other families, three seeds each: the curves of docs/results/families.md.

    python benchmarks/bundled_families.py [--models bundled-flow bundled-pixel] [--seeds 3] [--lanes 2]

GRPO makes images small as JPEG files, AlignProp follows the gradient of a network that predicts their size. The judge
stands beside both: how many images still show their prompt. A run that is there already is not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from figures import plain_axes, save_figure
from matplotlib.figure import Figure
from running import publish, records, run_all

MODELS = ("bundled-flow", "bundled-pixel")
METHODS = {
    "GRPO": ["grpo-compressibility"],
    "AlignProp": ["alignprop-compressibility", "early_stop.metric=none", "--rounds", "8"],
}
ALONE = {
    ("bundled-flow", "GRPO"): [
        "--rounds", "8", "algorithm.kl=0", "sampling.samples=64", "sampling.per_prompt=8", "sampling.guidance=1",
        "sampling.eta=0.5",
    ],
    ("bundled-pixel", "GRPO"): ["--rounds", "5", "sampling.guidance=2"],
    ("bundled-pixel", "AlignProp"): ["sampling.guidance=2"],
}  # fmt: skip
"""Settings of some alone. The flow's are those of rounds that take a quarter of the time."""
SHARED = ["--prompts", "bundled-single", "sampling.steps=10", "evaluation.every=1"]
RATES = {
    ("bundled-flow", "GRPO"): "1e-2",
    ("bundled-flow", "AlignProp"): "6e-3",
    ("bundled-pixel", "GRPO"): "1e-2",
    ("bundled-pixel", "AlignProp"): "6e-3",
}
"""Learning rates, of two or three that were tried with seed 0 for each."""
COLOURS = {"GRPO": "#0b6e99", "AlignProp": "#d1495b"}
ROWS = {
    "eval/reward/base_stds": "reward, in base standard deviations",
    "eval/judge/correct": "shows the prompt (judge)",
    "eval/diversity": "diversity",
}


def wanted(work: Path, models: Sequence[str], seeds: int) -> dict[tuple[str, str, int], tuple[Path, list[str]]]:
    """Folder and words of each run, the first seeds first."""
    return {
        (model, method, seed): (
            work / f"{model}-{method.lower()}-{seed}",
            [
                *[*METHODS[method], "--model", model, *SHARED, *ALONE.get((model, method), [])],
                *[f"optimizer.lr={RATES[model, method]}", "--seed", str(seed)],
            ],
        )
        for seed in range(seeds)
        for model in models
        for method in METHODS
    }


def plot(folders: dict[tuple[str, str, int], Path], out: Path) -> dict[str, dict[str, float]]:
    """Reward, judge and diversity by reward queries, with the range over seeds; returns the figures at the end."""
    models = list(dict.fromkeys(model for model, _, _ in folders))
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots(len(ROWS), len(models), squeeze=False)
    table = {}
    for column, model in enumerate(models):
        for method in METHODS:
            runs = [records(path) for (m, a, _), path in folders.items() if (m, a) == (model, method)]
            queries = runs[0][0][0]["reward_queries"]
            for row, key in enumerate(ROWS):
                values = np.array([[e[key] for e in evaluations] for _, evaluations in runs])
                x, colour = np.arange(values.shape[1]) * queries, COLOURS[method]
                axes[row][column].plot(x, values.mean(0), color=colour, label=method)
                axes[row][column].fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.2, lw=0)
            first, last = [e[0] for _, e in runs], [e[-1] for _, e in runs]
            reward = [e["eval/reward/base_stds"] for e in last]
            table[f"{model} {method}"] = {
                "seeds": len(runs),
                "queries": queries * (len(runs[0][1]) - 1),
                "base stds, mean": round(float(np.mean(reward)), 2),
                "base stds, lowest": round(min(reward), 2),
                "base stds, highest": round(max(reward), 2),
                **{
                    f"{name} {when}": round(float(np.mean([e[key] for e in chosen])), 3)
                    for name, key in (("judge", "eval/judge/correct"), ("diversity", "eval/diversity"))
                    for when, chosen in (("before", first), ("after", last))
                },
            }
        axes[0][column].set_title(model)
        axes[-1][column].set_xlabel("reward queries")
    for row, label in enumerate(ROWS.values()):
        axes[row][0].set_ylabel(label)
    for axis in axes.flat:
        axis.set_xscale("symlog", linthresh=8)
        axis.set_xticks([0, 8, 32, 128, 512], ["0", "8", "32", "128", "512"])
        axis.minorticks_off()
    for axis in axes[1]:
        axis.set_ylim(0, 1.02)
    for axis in axes[2]:
        axis.set_ylim(bottom=0)
    for axis in axes.flat:
        plain_axes(axis)
    axes[0][0].legend(frameon=False)
    save_figure(figure, out)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/families"))
    parser.add_argument("--lanes", type=int, default=2, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("docs/results/families"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    folders = run_all(wanted(arguments.work, arguments.models, arguments.seeds), arguments.lanes)
    publish(plot(folders, arguments.out), arguments.out)


if __name__ == "__main__":
    main()
