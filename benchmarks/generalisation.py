"""What is learned on some prompts, on others: the bundled world's form of DDPO §6.3 and of AlignProp's unseen prompts.

    python benchmarks/generalisation.py [--seeds 0 1 2] [--work build/generalisation]

DDPO and AlignProp learn busy images (JPEG incompressibility) on 48 prompts of one object. `tastemaker evaluate` then
compares them with the base model on 16 of those, on 16 of the same form that were kept apart (unseen), and on 16 of
two objects in a relation (unrelated), four images each. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from running import publish, run_all

import tastemaker as tm

PROMPTS = {"seen": "bundled-single-train", "unseen": "bundled-single-test", "unrelated": "bundled-pair-test"}
REWARD = "jpeg-incompressibility"
COMMON = ["--prompts", PROMPTS["seen"], "sampling.steps=10", "evaluation.kl_images=0"]
ARMS = {
    "DDPO": ["ddpo-incompressibility", *COMMON, "evaluation.every=100", "rounds=10"],
    # Ends where the judge's share falls, and leaves the model before (early_stop, as in the preset).
    "AlignProp": ["alignprop-incompressibility", *COMMON, "evaluation.every=3", "rounds=30"],
}


def table(result: Any, seeds: list[int]) -> list[dict[str, Any]]:
    """The mean over training seeds of each figure, with the least and the greatest; differences are to the base."""
    rows = []
    for name in ARMS:
        for prompts in PROMPTS:
            row: dict[str, Any] = {"method": name, "prompts": prompts}
            for metric in (REWARD, "clip-score", "judge", "diversity"):
                found = [result.found.rows(metric)[f"{name} {seed}", prompts] for seed in seeds]
                scaled = [one.in_base_std or one.difference for one in found]
                means = [one.estimate for one in scaled]
                row[metric] = {
                    "mean": round(statistics.mean(means), 3), "seeds": [round(mean, 3) for mean in means],
                    "intervals": [[round(one.low, 3), round(one.high, 3)] for one in scaled],
                    "base": round(result.found.rows(metric)["base", prompts].value.estimate, 3),
                }  # fmt: skip
            rows.append(row)
    return rows


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/generalisation"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/generalisation"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--lanes", type=int, default=1, help="runs at a time, one core each")
    args = parser.parse_args()
    given = {
        f"{name} {seed}": (args.work / f"{name}-{seed}".lower(), [*words, "--seed", str(seed)])
        for name, words in ARMS.items() for seed in args.seeds
    }  # fmt: skip
    folders = run_all(given, args.lanes)
    result = tm.evaluate_models(
        folders, args.work / "evaluation", prompts=PROMPTS, prompt_count=16, seeds=4,
        rewards=[REWARD, "clip-score"], metrics=["judge", "diversity"], seed=7, eta=1.0,
    )  # fmt: skip
    publish({"prompts": PROMPTS, "table": table(result, args.seeds)}, args.out)


if __name__ == "__main__":
    main()
