"""B2-DiffuRL against DDPO on alignment, where the bundled model without guidance leaves something to learn.

    python benchmarks/relations.py [--seeds 3] [--work build/relations]

The bundled model's analogues of B2's three templates: a number of objects (3 seeds) and an object with its attributes
by the bundled CLIP's score, two objects in a relation by the judge's soft score (a seed each), at equal reward queries:
80 rounds of 64 images. Two runs at a time, one thread each. A run that is there already is not made again. Writes
docs/results/relations.{png,svg,json}.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from figures import plain_axes, save_figure
from matplotlib.figure import Figure
from running import publish, records, run_all

PRESETS = {"ddpo": "ddpo-relations", "b2": "b2-relations"}
LISTS = {"count": "bundled-count", "pair": "bundled-pair", "attributes": "bundled-attributes"}
REWARDS = {"count": "clip-score", "pair": "judge-score", "attributes": "clip-score"}
"""The bundled CLIP does not know which of two objects is where."""


def measured(folder: Path) -> dict[str, float]:
    """What a run began and ended with, in evaluations and in its own ten rounds, and what its training took."""
    rounds, evaluations = records(folder)
    first, last = evaluations[0], evaluations[-1]
    return {
        "reward, base stds": last["eval/reward/base_stds"],
        "judge before": first["eval/judge/correct"], "judge after": last["eval/judge/correct"],
        "judge, first ten rounds": statistics.fmean(record["judge/correct"] for record in rounds[:10]),
        "judge, last ten rounds": statistics.fmean(record["judge/correct"] for record in rounds[-10:]),
        "diversity before": first["eval/diversity"], "diversity after": last["eval/diversity"],
        "seconds sampling": sum(record["seconds/sample"] for record in rounds),
        "seconds training": sum(record["seconds/train"] for record in rounds),
        "reward queries": rounds[-1]["reward_queries"],
    }  # fmt: skip


def table(folders: dict[tuple[str, str, int], Path]) -> dict[str, Any]:
    """Each list and method: means over seeds, and each seed."""
    out: dict[str, Any] = {}
    for name in dict.fromkeys(key[0] for key in folders):
        for method in PRESETS:
            found = [measured(path) for key, path in folders.items() if key[:2] == (name, method)]
            means = {key: round(statistics.fmean(one[key] for one in found), 3) for key in found[0]}
            each = {key: [round(one[key], 3) for one in found] for key in means}
            out[f"{name} {method}"] = {"seeds": len(found), **means, "each seed": each}
    return out


def plot(folders: dict[tuple[str, str, int], Path], out: Path) -> None:
    """Judge and diversity at the evaluations, a column a list, a line a run."""
    names = list(dict.fromkeys(key[0] for key in folders))
    figure = Figure(figsize=(3.4 * len(names), 5.4), layout="constrained")
    axes = figure.subplots(2, len(names), sharex=True, sharey="row", squeeze=False)
    for (name, method, seed), folder in folders.items():
        rounds, evaluations = records(folder)
        queries = rounds[0]["reward_queries"]
        x = [evaluation["evaluation"] * queries for evaluation in evaluations]
        for row, key in enumerate(("eval/judge/correct", "eval/diversity")):
            axes[row][names.index(name)].plot(
                x, [evaluation[key] for evaluation in evaluations], "C1" if method == "b2" else "C0", marker="o", ms=3,
                label={"b2": "B2-DiffuRL", "ddpo": "DDPO"}[method] if seed == 0 else None,
            )  # fmt: skip
    for column, name in enumerate(names):
        axes[0][column].set(title=LISTS[name], ylim=(0, 1))
        axes[1][column].set(xlabel="reward queries", ylim=(0, None))
    axes[0][0].set_ylabel("shows the prompt (judge)")
    axes[1][0].set_ylabel("diversity")
    axes[0][-1].legend(frameon=False, loc="lower left")
    for axis in axes.flat:
        plain_axes(axis)
    save_figure(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="of bundled-count; the others have one")
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--lists", default=",".join(LISTS), help="comma-separated")
    parser.add_argument("--work", type=Path, default=Path("build/relations"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/relations"))
    arguments = parser.parse_args()
    wanted = [("pair", 0), ("attributes", 0)] + [("count", seed) for seed in range(arguments.seeds)]
    runs = {
        (name, method, seed): (
            arguments.work / f"{name}-{method}-{seed}",
            [preset, "--prompts", LISTS[name], "--reward", REWARDS[name], "--rounds", str(arguments.rounds),
             "--seed", str(seed), *([f"window.rounds={arguments.rounds}"] if method == "b2" else [])],
        )
        for name, seed in wanted
        for method, preset in PRESETS.items()
        if name in arguments.lists.split(",")
    }  # fmt: skip
    folders = run_all(runs)
    plot(folders, arguments.out)
    publish(table(folders), arguments.out)


if __name__ == "__main__":
    main()
