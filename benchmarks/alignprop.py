"""Reward queries of AlignProp against DDPO's on the same differentiable reward, and what the choice of K does.

    python benchmarks/alignprop.py [--seeds 5] [--work build/alignprop]

The bundled model and the JPEG size as a network counts it. DDPO as its preset has it (6 rounds of 128 images);
AlignProp with one image an update, at two learning rates, evaluated after each round of four updates. Then AlignProp,
two images an update, with K drawn at random, 1, 10 and all 20 steps, for 24 updates, evaluated after every two. Two
runs at a time, one thread each. A run that is there already is not made again. Writes
docs/results/alignprop.{png,svg,json}.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path
from typing import Any

from figures import plain_axes, save_figure
from matplotlib.figure import Figure
from running import publish, records, run_all

REWARD = ["--reward", "jpeg-surrogate-compressibility"]
RATES = ("3e-3", "4e-3")
DEPTHS = {
    "random": [],
    "1": ["algorithm.truncation=fixed", "algorithm.last=1"],
    "10": ["algorithm.truncation=fixed", "algorithm.last=10"],
    "20 (all)": ["algorithm.truncation=fixed", "algorithm.last=20"],
}
HELD = (0.9, 0.85, 0.8, 0.75, 0.7, 0.6)
"""Shares of images that show their prompt, at which rewards are compared."""
UNWATCHED = ["early_stop.metric=none"]


def wanted(work: Path, seeds: int) -> dict[tuple[str, int], tuple[Path, list[str]]]:
    """Words of each run by its kind and seed."""
    runs: dict[tuple[str, int], tuple[Path, list[str]]] = {}
    for seed in range(seeds):
        last = ["--seed", str(seed)]
        runs["ddpo", seed] = (work / f"ddpo-{seed}", ["ddpo-compressibility", *REWARD, *last])
        single = ["optimizer.updates=4", "optimizer.rows=1", "evaluation.every=1", "--rounds", "10"]
        for rate in RATES:
            quick = ["alignprop-compressibility", *UNWATCHED, *single, f"optimizer.lr={rate}"]
            runs[rate, seed] = (work / f"alignprop-{rate}-{seed}", [*quick, *last])
        for name, words in DEPTHS.items():
            settings = ["alignprop-compressibility", *UNWATCHED, *words, "evaluation.every=1", "--rounds", "12"]
            runs[name, seed] = (work / f"K-{name.split()[0]}-{seed}", [*settings, *last])
    return runs


def first_at(reward: float, folder: Path) -> tuple[dict[str, Any], int] | None:
    """The first evaluation at `reward` base standard deviations or above, and the queries before it; None without."""
    rounds, evaluations = records(folder)
    reached = (e for e in evaluations if e["eval/reward/base_stds"] >= reward)
    return next(((e, e["evaluation"] * rounds[0]["reward_queries"]) for e in reached), None)


def while_held(folder: Path, share: float) -> tuple[float, float]:
    """Reward and diversity where the judge's share first falls to `share`, on the line between two evaluations.

    Those of the last evaluation where it never does.
    """
    keys = ("eval/judge/correct", "eval/reward/base_stds", "eval/diversity")
    points = [tuple(e[key] for key in keys) for e in records(folder)[1]]
    for before, after in itertools.pairwise(points):
        if after[0] < share:
            part = (before[0] - share) / (before[0] - after[0])
            return before[1] + part * (after[1] - before[1]), before[2] + part * (after[2] - before[2])
    return points[-1][1], points[-1][2]


def table(folders: dict[tuple[str, int], Path], seeds: int) -> dict[str, Any]:
    """Per seed the queries of both methods; per K the means over seeds, in the end and at each share of HELD."""
    out: dict[str, Any] = {"queries": [], "K": {}}
    for seed in range(seeds):
        rounds, evaluations = records(folders["ddpo", seed])
        queries, final = rounds[-1]["reward_queries"], evaluations[-1]
        row: dict[str, Any] = {
            "seed": seed, "ddpo reward": round(final["eval/reward/base_stds"], 2), "ddpo queries": queries,
            "ddpo judge": round(final["eval/judge/correct"], 3), "ddpo diversity": round(final["eval/diversity"], 3),
        }  # fmt: skip
        for rate in RATES:
            row[rate] = None
            if found := first_at(final["eval/reward/base_stds"], folders[rate, seed]):
                there, taken = found
                row[rate] = {
                    "queries": taken, "times fewer": round(queries / taken, 1),
                    "reward": round(there["eval/reward/base_stds"], 2), "judge": round(there["eval/judge/correct"], 3),
                    "diversity": round(there["eval/diversity"], 3),
                }  # fmt: skip
        out["queries"].append(row)
    for name in DEPTHS:
        last = [records(folders[name, seed])[1][-1] for seed in range(seeds)]
        seconds = [r["seconds/train"] for seed in range(seeds) for r in records(folders[name, seed])[0]]
        keys = ("eval/reward/base_stds", "eval/judge/correct", "eval/diversity")
        means = {key.removeprefix("eval/"): round(statistics.fmean(e[key] for e in last), 3) for key in keys}
        spread = [round(e["eval/reward/base_stds"], 2) for e in last]
        held = {share: [while_held(folders[name, seed], share) for seed in range(seeds)] for share in HELD}
        out["K"][name] = {
            **means,
            "each seed's reward": spread,
            "where so many show the prompt": {
                f"{share:.0%}": {
                    "reward/base_stds": round(statistics.fmean(reward for reward, _ in found), 2),
                    "diversity": round(statistics.fmean(diversity for _, diversity in found), 3),
                    "each seed's reward": [round(reward, 2) for reward, _ in found],
                }
                for share, found in held.items()
            },
            "seconds a round": round(statistics.median(seconds), 2),
        }
    return out


def plot(folders: dict[tuple[str, int], Path], seeds: int, out: Path) -> None:
    """Left: reward by queries, on a logarithmic scale. Right: reward against the judge for each K, seeds and mean."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = {"ddpo": "DDPO", **{rate: f"AlignProp, rate {rate}" for rate in RATES}}
    for place, (name, label) in enumerate(labels.items()):
        for seed in range(seeds):
            rounds, evaluations = records(folders[name, seed])
            each = rounds[0]["reward_queries"]
            points = [(e["evaluation"] * each, e["eval/reward/base_stds"]) for e in evaluations if e["evaluation"]]
            told = label if seed == 0 else None
            left.plot(*zip(*points, strict=True), color=f"C{place}", marker="o", ms=3, lw=1, label=told)
    left.set(xscale="log", xlabel="reward queries", ylabel="reward, in base standard deviations")
    left.legend(frameon=False)
    for place, name in enumerate(DEPTHS):
        runs = [records(folders[name, seed])[1] for seed in range(seeds)]
        for evaluations in runs:
            rewards = [e["eval/reward/base_stds"] for e in evaluations]
            right.plot(rewards, [e["eval/judge/correct"] for e in evaluations], color=f"C{place}", lw=0.6, alpha=0.35)
        x, y = (
            [statistics.fmean(e[key] for e in same) for same in zip(*runs, strict=True)]
            for key in ("eval/reward/base_stds", "eval/judge/correct")
        )
        right.plot(x, y, color=f"C{place}", marker="o", ms=3, lw=2, label=f"K = {name}")
    right.axhline(0.8, color="0.5", lw=0.8, ls=":")
    right.set(xlabel="reward, in base standard deviations", ylabel="shows the prompt (judge)", ylim=(0, 1.02))
    right.legend(frameon=False)
    for axis in (left, right):
        plain_axes(axis)
    save_figure(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("build/alignprop"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/alignprop"))
    arguments = parser.parse_args()
    folders = run_all(wanted(arguments.work, arguments.seeds))
    plot(folders, arguments.seeds, arguments.out)
    result = table(folders, arguments.seeds)
    publish(result, arguments.out)


if __name__ == "__main__":
    main()
