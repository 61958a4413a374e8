"""The single-pass policy gradient beside the ordinary one: time of a round, memory, and the curves of three seeds.

    python benchmarks/single_pass.py [--rounds 6] [--seeds 3] [--work build/single-pass]

DDPO's score function on the bundled model, 64 images a round, all 20 steps trained, one run at a time on one thread.
Runs of the two forms follow each other, so that what else the machine does meets both. A run that is there already is
not made again. Writes figures and curves to docs/results.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from figures import plain_axes, save_figure
from matplotlib.figure import Figure
from running import publish, records

FORMS = {"two passes": "false", "single pass": "true"}
COLOURS = {"two passes": "#0b6e99", "single pass": "#d1495b"}
SETTINGS = [
    "ddpo-compressibility-sf", "sampling.samples=64", "sampling.per_prompt=8", "sampling.batch=32", "optimizer.rows=32",
    "optimizer.lr=1e-2", "optimizer.warmup=0", "evaluation.every=1", "evaluation.kl_images=0",
]  # fmt: skip


def run(folder: Path, form: str, seed: int, rounds: int) -> None:
    """One run, and the most memory that its process had, beside it."""
    if (folder / "report.html").is_file():
        return
    words = ["train", *SETTINGS, f"optimizer.single_pass={FORMS[form]}", "--seed", str(seed), "--rounds", str(rounds)]
    command = [sys.executable, "-m", "tastemaker", *words, "--out", str(folder)]
    child = os.posix_spawn(sys.executable, command, os.environ | {"OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    (folder / "usage.json").write_text(json.dumps({"peak": usage.ru_maxrss * 1024}) + "\n")


def figures(folders: list[Path]) -> dict[str, Any]:
    """Medians over the rounds of all seeds but each run's first, and the rewards at the end."""
    rounds = [record for folder in folders for record in records(folder)[0][1:]]
    last = [records(folder)[1][-1]["eval/reward/base_stds"] for folder in folders]
    peak = [json.loads((folder / "usage.json").read_text())["peak"] for folder in folders]
    return {
        "seeds": len(folders),
        "seconds to sample and train, median": round(
            statistics.median(record["seconds/sample"] + record["seconds/train"] for record in rounds), 2
        ),
        "peak memory in MiB": round(statistics.median(peak) / 2**20),
        "base stds": [round(value, 2) for value in last],
    }


def plot(folders: dict[str, list[Path]], out: Path) -> None:
    """The evaluations' reward by round, a line for each seed."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for form, runs in folders.items():
        curves = np.array([[e["eval/reward/base_stds"] for e in records(folder)[1]] for folder in runs])
        for number, curve in enumerate(curves):
            axes.plot(curve, color=COLOURS[form], alpha=0.35, lw=1, label=f"{form}, each seed" if not number else None)
        axes.plot(curves.mean(0), color=COLOURS[form], lw=2.2, label=f"{form}, mean")
    axes.set(xlabel="rounds of training done", ylabel="reward, in base standard deviations")
    plain_axes(axes)
    axes.legend(frameon=False)
    save_figure(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/single-pass"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/single-pass"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    folders: dict[str, list[Path]] = {form: [] for form in FORMS}
    for seed in range(arguments.seeds):
        for form in FORMS:
            folder = arguments.work / f"{form.replace(' ', '-')}-{seed}"
            run(folder, form, seed, arguments.rounds)
            folders[form].append(folder)
            print(form, seed, json.dumps(figures([folder])), flush=True)
    result = {form: figures(runs) for form, runs in folders.items()}
    one, two = (result[form]["seconds to sample and train, median"] for form in ("single pass", "two passes"))
    plot(folders, arguments.out)
    publish(result | {"ratio of times": round(one / two, 3)}, arguments.out)


if __name__ == "__main__":
    main()
