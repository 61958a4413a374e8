"""Every likelihood and regression method on one reward, at equal reward queries: the figure of docs/results/methods.md.

    python benchmarks/methods.py [--rounds 6] [--seeds 3] [--only ddpo-is,pg] [--work build/methods]

Compressibility on the bundled model, 64 images a round. Two runs at a time, one thread each. A run that is there
already is not made again.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from figures import plain_axes, save_figure
from matplotlib.figure import Figure
from running import publish, records, run_all

BASE = [
    "ddpo-compressibility", "sampling.samples=64", "sampling.per_prompt=8", "evaluation.every=4", "optimizer.lr=6e-3",
    "optimizer.warmup=4",
]  # fmt: skip
REGRESSION = ["optimizer.first_share=1", "algorithm.noises=16"]
SLOW, SLOWEST = "optimizer.lr=2e-3", "optimizer.lr=1e-3"
"""Each method has the largest rate of 6e-3, 2e-3 and 1e-3 at which 75 % of the images still showed their prompt."""
METHODS: dict[str, list[str]] = {
    "ddpo-is": [],
    "ddpo-sf": ["algorithm.estimator=sf", "optimizer.updates=1", "optimizer.warmup=0"],
    "pg": ["algorithm=pg"],
    "dpok": ["algorithm=dpok", "algorithm.clip=1e-2"],
    "grpo": ["algorithm=grpo", "algorithm.clip=1e-2", "advantage.normalise=group", "selection=nonzero"],
    "dpo": ["algorithm=dpo", "optimizer.timestep_fraction=0.25", SLOW],
    "ppo": [
        "algorithm=ppo", "algorithm.clip=1e-2", "algorithm.value_lr=1e-3", "algorithm.value_warmup=0",
        "advantage.normalise=base", "optimizer.minibatch=states", SLOW,
    ],
    "b2": [
        "sampling.branches=4", "window=backward", "window.initial=11", "window.rounds=6", "selection=best-worst",
        "advantage.normalise=windowed",
    ],
    "nft": ["algorithm=nft", *REGRESSION, "optimizer.clip_norm=5"],
    "rwr": ["algorithm=rwr", "advantage.normalise=softmax", "advantage.beta=30", *REGRESSION, SLOWEST],
    "rwr-sparse": ["algorithm=rwr", "advantage.normalise=percentile", "selection=nonzero", *REGRESSION,
                   "algorithm.noises=64", SLOWEST],
    "rwr-sparse-unguided": ["algorithm=rwr", "advantage.normalise=percentile", "selection=nonzero", *REGRESSION,
                            "algorithm.noises=64", SLOWEST, "algorithm.guided=false"],
}  # fmt: skip
"""Settings of each, over BASE."""


def table(runs: dict[str, list[Path]]) -> dict[str, dict[str, float]]:
    """What each method's last evaluations found, over its seeds."""
    found = {}
    for method, folders in runs.items():
        rounds = [round_ for folder in folders for round_ in records(folder)[0]]
        last = [records(folder)[1][-1] for folder in folders]
        stds = [evaluation["eval/reward/base_stds"] for evaluation in last]
        found[method] = {
            "seeds": len(folders), "base stds, mean": round(statistics.fmean(stds), 2),
            "lowest": round(min(stds), 2), "highest": round(max(stds), 2),
            "judge after": round(statistics.fmean(e["eval/judge/correct"] for e in last), 3),
            "diversity after": round(statistics.fmean(e["eval/diversity"] for e in last), 3),
            "queries": rounds[-1]["reward_queries"],
            "seconds a round": round(statistics.median(r["seconds/round"] for r in rounds), 1),
        }  # fmt: skip
    return found


def plot(runs: dict[str, list[Path]], found: dict[str, dict[str, float]], out: Path) -> None:
    """Rewards by queries, a panel a method: its mean, its seeds thin, the other methods' means in grey."""
    curves = {}
    for method, folders in runs.items():
        seeds = [records(folder)[0] for folder in folders]
        x = [record["reward_queries"] - seeds[0][0]["reward_queries"] for record in seeds[0]]
        curves[method] = x, [[record["reward/base_stds"] for record in rounds] for rounds in seeds]
    columns = min(4, len(runs))
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(2.6 * columns + 0.6, 2.6 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in list(axes.flat)[len(runs) :]:
        axis.remove()
    for axis, method in zip(axes.flat, runs, strict=False):
        for x, seeds in curves.values():
            axis.plot(x, [statistics.fmean(values) for values in zip(*seeds, strict=True)], color="0.85", lw=0.9)
        x, seeds = curves[method]
        for values in seeds:
            axis.plot(x, values, color="C0", lw=0.8, alpha=0.5)
        axis.plot(x, [statistics.fmean(values) for values in zip(*seeds, strict=True)], color="C0", lw=2.2)
        end = found[method]
        axis.set_title(method, loc="left", fontsize=10, fontweight="bold")
        axis.text(
            0.04, 0.95, f"{end['base stds, mean']:+.2f} in the end\n{end['judge after']:.0%} show the prompt",
            transform=axis.transAxes, va="top", fontsize=8.5, color="0.3",
        )  # fmt: skip
        plain_axes(axis)
    low, high = axes.flat[0].get_ylim()
    axes.flat[0].set_ylim(low, high + 0.2 * (high - low))  # room for the words
    figure.supxlabel("reward queries before the round", fontsize=10)
    figure.supylabel("reward of the round,\nin base standard deviations", fontsize=10)
    save_figure(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(METHODS), help="comma-separated methods")
    parser.add_argument("--work", type=Path, default=Path("build/methods"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/methods"))
    arguments = parser.parse_args()
    given = ["--rounds", str(arguments.rounds)]
    runs = {
        (method, seed): (arguments.work / f"{method}-{seed}", [*BASE, *METHODS[method], *given, "--seed", str(seed)])
        for seed in range(arguments.seeds)
        for method in arguments.only.split(",")
    }
    done = run_all(runs)
    folders = {method: [done[method, seed] for seed in range(arguments.seeds)] for method in arguments.only.split(",")}
    found = table(folders)
    plot(folders, found, arguments.out)
    publish(found, arguments.out)


if __name__ == "__main__":
    main()
