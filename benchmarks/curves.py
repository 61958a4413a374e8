"""Both estimators of DDPO on both JPEG rewards, three seeds each: the curves of docs/results/ddpo.md.

    python benchmarks/curves.py --rounds 6 [--seeds 3] [--work build/curves]

Two runs at a time, one thread each. A run that is there already is not made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from figures import plain_axes, save_figure
from matplotlib.figure import Figure
from running import publish, records, run_all

REWARDS = ("compressibility", "incompressibility")
ESTIMATORS = {"is": "", "sf": "-sf"}
SETTINGS = ["sampling.samples=64", "sampling.per_prompt=8", "optimizer.lr=1e-2", "optimizer.warmup=0"]
"""The same for all runs, whatever the presets' own are: half of their images, which shows the spread."""
LABELS = {"is": "DDPO-IS", "sf": "DDPO-SF"}
COLOURS = {"is": "#0b6e99", "sf": "#d1495b"}


def words(reward: str, estimator: str, seed: int) -> list[str]:
    """Preset and settings of one run."""
    preset = f"ddpo-{reward}{ESTIMATORS[estimator]}"
    return [preset, "--seed", str(seed), "--evaluation.every", "100", *SETTINGS]


def plot(folders: dict[tuple[str, str, int], Path], out: Path) -> dict[str, dict[str, float]]:
    """Reward by round with the range over seeds, and the judge below it; returns the final figures."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    table = {}
    for column, reward in enumerate(REWARDS):
        for estimator in ESTIMATORS:
            runs = [records(path) for (r, e, _), path in folders.items() if (r, e) == (reward, estimator)]
            for row, key in enumerate(("reward/base_stds", "judge/correct")):
                values = np.array([[record[key] for record in rounds] for rounds, _ in runs])
                x, colour = np.arange(values.shape[1]), COLOURS[estimator]
                axes[row][column].plot(x, values.mean(0), color=colour, label=LABELS[estimator])
                axes[row][column].fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.2, lw=0)
            last = [evaluations[-1] for _, evaluations in runs]
            table[f"{reward} {LABELS[estimator]}"] = {
                "seeds": len(runs),
                "base stds, mean": round(float(np.mean([e["eval/reward/base_stds"] for e in last])), 2),
                "base stds, lowest": round(float(np.min([e["eval/reward/base_stds"] for e in last])), 2),
                "base stds, highest": round(float(np.max([e["eval/reward/base_stds"] for e in last])), 2),
                "judge before": round(float(np.mean([e[0]["eval/judge/correct"] for _, e in runs])), 3),
                "judge after": round(float(np.mean([e["eval/judge/correct"] for e in last])), 3),
            }
        axes[0][column].set_title(f"JPEG {reward}")
        axes[1][column].set(ylim=(0, 1.02), xlabel="rounds of training done")
    axes[0][0].set_ylabel("reward, in base standard deviations")
    axes[1][0].set_ylabel("shows the prompt (judge)")
    for axis in axes.flat:
        plain_axes(axis)
    axes[0][0].legend(frameon=False)
    save_figure(figure, out)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/curves"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/ddpo-curves"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    keys = [(r, e, seed) for seed in range(arguments.seeds) for r in REWARDS for e in ESTIMATORS]
    rounds = ["--rounds", str(arguments.rounds)] if arguments.rounds else []
    folders = run_all({key: (arguments.work / "-".join(map(str, key)), [*words(*key), *rounds]) for key in keys})
    table = plot(folders, arguments.out)
    publish(table, arguments.out)


if __name__ == "__main__":
    main()
