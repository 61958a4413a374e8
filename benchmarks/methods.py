"""Every likelihood and regression method on one reward, at equal reward queries: the figure of docs/methods/README.md.

    python benchmarks/methods.py [--rounds 6] [--seeds 3] [--only ddpo-is,pg] [--work build/methods]

Compressibility on the bundled model, 64 pictures a round. Two runs at a time, one thread each. A run that is there
already is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from matplotlib.figure import Figure
from runs import records, run_all

BASE = [
    "ddpo-compressibility", "sampling.samples=64", "sampling.per_prompt=8", "evaluation.every=4", "optimizer.lr=6e-3",
    "optimizer.warmup=4",
]  # fmt: skip
REGRESSION = ["optimizer.first_share=1", "algorithm.noises=16"]
SLOW, SLOWEST = "optimizer.lr=2e-3", "optimizer.lr=1e-3"
"""Each method has the largest rate of 6e-3, 2e-3 and 1e-3 at which 75 % of the pictures still showed their prompt."""
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
    "nft": ["algorithm=nft", *REGRESSION],
    "rwr": ["algorithm=rwr", "advantage.normalise=softmax", "advantage.beta=30", *REGRESSION, SLOWEST],
    "rwr-sparse": ["algorithm=rwr", "advantage.normalise=percentile", "selection=nonzero", *REGRESSION,
                   "algorithm.noises=64", SLOWEST],
    "rwr-sparse-unguided": ["algorithm=rwr", "advantage.normalise=percentile", "selection=nonzero", *REGRESSION,
                            "algorithm.noises=64", SLOWEST, "algorithm.guided=false"],
}  # fmt: skip
"""Settings of each, over BASE."""


def plot(folders: dict[tuple[str, int], Path], out: Path) -> dict[str, dict[str, float]]:
    """Reward and judge by reward queries, a line a method with the range over its seeds; returns the last figures."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    table = {}
    colours = [f"C{number}" for number in range(10)] + ["black", "grey"]
    for method, colour in zip(dict.fromkeys(m for m, _ in folders), colours, strict=False):
        runs = [records(path) for (m, _), path in folders.items() if m == method]
        for axis, key in zip(axes, ("reward/base_stds", "judge/correct"), strict=True):
            values = list(zip(*[[record[key] for record in rounds] for rounds, _ in runs], strict=True))
            x = [record["reward_queries"] - runs[0][0][0]["reward_queries"] for record in runs[0][0]]
            axis.plot(x, [statistics.fmean(v) for v in values], color=colour, label=method, lw=1.6)
            axis.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.08, lw=0)
        last = [evaluations[-1] for _, evaluations in runs]
        stds = [e["eval/reward/base_stds"] for e in last]
        table[method] = {
            "seeds": len(runs), "base stds, mean": round(statistics.fmean(stds), 2),
            "lowest": round(min(stds), 2), "highest": round(max(stds), 2),
            "judge after": round(statistics.fmean(e["eval/judge/correct"] for e in last), 3),
            "diversity after": round(statistics.fmean(e["eval/diversity"] for e in last), 3),
            "queries": runs[0][0][-1]["reward_queries"],
            "seconds a round": round(statistics.median(r["seconds/round"] for rounds, _ in runs for r in rounds), 1),
        }  # fmt: skip
    axes[0].set_ylabel("reward of the round, in base standard deviations")
    axes[1].set(ylabel="shows the prompt (judge)", xlabel="reward queries before the round", ylim=(0, 1.02))
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, ncols=2, loc="upper left")
    figure.savefig(out.with_suffix(".svg"))
    figure.savefig(out.with_suffix(".png"), dpi=110)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(METHODS), help="comma-separated methods")
    parser.add_argument("--work", type=Path, default=Path("build/methods"))
    parser.add_argument("--out", type=Path, default=Path("docs/methods"))
    arguments = parser.parse_args()
    given = ["--rounds", str(arguments.rounds)]
    runs = {
        (method, seed): (arguments.work / f"{method}-{seed}", [*BASE, *METHODS[method], *given, "--seed", str(seed)])
        for seed in range(arguments.seeds)
        for method in arguments.only.split(",")
    }
    table = plot(run_all(runs), arguments.out)
    arguments.out.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
