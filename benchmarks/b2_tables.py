"""B2-DiffuRL's Tables 1 to 3 on the bundled world: diversity and alignment with and without it, over four algorithms.

    python benchmarks/b2_tables.py [--seeds 0 1 2] [--rounds 60] [--work build/b2-tables]

DDPO, PG, DPOK and DPO learn the bundled CLIP's score on a number of objects, each alone and inside B2-DiffuRL
(branches, a window that grows backward, the best and worst of a prompt's images), at equal reward queries.
`tastemaker evaluate` then measures all of them on trained prompts and on unseen ones of the same form: CLIP inception
score (Tables 1 and 2), CLIPScore (Table 3), the judge, diversity. What is there already is not made again. Writes
docs/results/b2-tables.json.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from running import publish, records, run_all

import tastemaker as tm

PROMPTS = {"seen": "bundled-count-train", "unseen": "bundled-count-test"}
ALGORITHMS = {
    "DDPO": [],
    # REINFORCE, one update a round: with importance weights it is DDPO to the last bit, whose clip of 1e-2 never acts.
    "PG": ["algorithm.estimator=sf", "optimizer.updates=1", "optimizer.lr=2e-3", "optimizer.warmup=2"],
    "DPOK": ["algorithm=dpok", "algorithm.clip=1e-2"],
    # A third of the others' rate and a quarter of the steps of its many pairs, as in methods.py.
    "DPO": ["algorithm=dpo", "optimizer.lr=3e-4", "optimizer.timestep_fraction=0.25"],
}
"""Settings of each, over the preset ddpo-clip."""
B2 = [
    "sampling.branches=4", "window=backward", "window.initial=4", "selection=best-worst",
    "advantage.normalise=windowed", "advantage.min_count=2",
]  # fmt: skip
METRICS = ("clip-inception", "clip-score", "judge", "diversity")


def commands(rounds: int, seeds: list[int], work: Path) -> dict[tuple[str, str, int], tuple[Path, list[str]]]:
    """The runs by algorithm, "alone" or "B2", and seed; one seed's before the next's."""
    out = {}
    for seed in seeds:
        for algorithm, settings in ALGORITHMS.items():
            for arm, more in (("alone", []), ("B2", [*B2, f"window.rounds={rounds}"])):
                words = [
                    "ddpo-clip", "optimizer.first_share=0.75", *settings, *more, f"rounds={rounds}", f"seed={seed}",
                    f"evaluation.every={rounds}", "evaluation.per_prompt=2", "evaluation.kl_images=0",
                ]  # fmt: skip
                out[algorithm, arm, seed] = work / f"{algorithm}-{arm}-{seed}".lower(), words
    return out


def table(result: Any, folders: dict[tuple[str, str, int], Path]) -> list[dict[str, Any]]:
    """Each algorithm's means over seeds with and without B2, the base model's, and what the training took."""
    rows = []
    seeds = sorted({seed for _, _, seed in folders})
    for prompts in PROMPTS:
        for metric in METRICS:
            found = result.found.rows(metric)
            row: dict[str, Any] = {"prompts": prompts, "metric": metric}
            row["base"] = round(found["base", prompts].value.estimate, 4)
            for algorithm in ALGORITHMS:
                for arm in ("alone", "B2"):
                    each = [found[f"{algorithm} {arm} {seed}", prompts].value.estimate for seed in seeds]
                    row[f"{algorithm} {arm}"] = round(statistics.mean(each), 4)
                    row[f"{algorithm} {arm}, seeds"] = [round(one, 4) for one in each]
            rows.append(row)
    return rows


def cost(folders: dict[tuple[str, str, int], Path]) -> dict[str, Any]:
    """Reward queries of a run, and seconds of sampling and training, medians over seeds."""
    out: dict[str, Any] = {}
    for algorithm in ALGORITHMS:
        for arm in ("alone", "B2"):
            rounds = [records(path)[0] for key, path in folders.items() if key[:2] == (algorithm, arm)]
            out[f"{algorithm} {arm}"] = {
                "reward queries": sorted({run[-1]["reward_queries"] for run in rounds}),
                "seconds sampling": round(statistics.median(sum(r["seconds/sample"] for r in run) for run in rounds)),
                "seconds training": round(statistics.median(sum(r["seconds/train"] for r in run) for run in rounds)),
            }
    return out


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--work", type=Path, default=Path("build/b2-tables"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/b2-tables"))
    parser.add_argument("--lanes", type=int, default=1, help="runs at a time, one core each")
    args = parser.parse_args()
    folders = run_all(commands(args.rounds, args.seeds, args.work), args.lanes)
    models = {f"{algorithm} {arm} {seed}": path for (algorithm, arm, seed), path in folders.items()}
    result = tm.evaluate_models(
        models, args.work / "evaluation", prompts=PROMPTS, prompt_count=32, seeds=6, rewards=["clip-score"],
        metrics=["judge", "diversity", "clip-inception"], seed=7,
    )  # fmt: skip
    publish({"prompts": PROMPTS, "table": table(result, folders), "cost": cost(folders)}, args.out)


if __name__ == "__main__":
    main()
