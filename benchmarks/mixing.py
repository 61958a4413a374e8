"""AlignProp's Table 4 on the bundled model: the average of two rewards over mixtures of adapters trained on each.

    python benchmarks/mixing.py [--work build/mixing]

Three rewards, 640 queries of AlignProp each, far enough for the images to have changed as much as they will. Two runs
at a time, one thread each; then `tastemaker mix` of the pairs. What is there already is not made again. Writes
docs/results/mixing-pairs.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from running import publish, run_all

from tastemaker.cli.main import main as tastemaker

SATURATED = [
    "alignprop-compressibility", "--rounds", "40", "sampling.samples=16", "optimizer.lr=1.5e-3", "optimizer.rows=4",
    "early_stop.metric=none", "evaluation.every=10",
]  # fmt: skip
RUNS = {
    "files-0": ["--seed", "0"],
    "colours-1": ["--seed", "1", "--reward", "soft-colourfulness"],
    "aesthetic-1": ["--seed", "1", "--reward", "aesthetic:bundled"],
    "aesthetic-0": ["--seed", "0", "--reward", "aesthetic:bundled"],
}
PAIRS = [
    ("files-0", "colours-1", "delta"), ("files-0", "aesthetic-1", "delta"), ("files-0", "aesthetic-0", "delta"),
    ("files-0", "aesthetic-0", "factor"), ("colours-1", "aesthetic-1", "delta"),
]  # fmt: skip


def mixed(work: Path, a: str, b: str, mode: str) -> list[dict[str, Any]]:
    """Each reward in base deviations, its standard error, and the average, by alpha, the weight of A."""
    folder = work / f"{a}-and-{b}-{mode}"
    if not (folder / "mix.json").is_file():
        words = ["mix", str(work / a), str(work / b), "--alpha", "0:1:0.25", "--mode", mode, "--out", str(folder)]
        if code := tastemaker(words):
            raise SystemExit(code)
    return [
        {
            "alpha": mixture["weights"][0],
            "average": round(mixture["average"], 2),
            **{
                name: {key: round(one[key], 2) for key in ("standardised", "error")}
                for name, one in mixture["rewards"].items()
            },
        }
        for mixture in json.loads((folder / "mix.json").read_text())["mixtures"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/mixing"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/mixing-pairs"))
    arguments = parser.parse_args()
    run_all({name: (arguments.work / name, [*SATURATED, *words]) for name, words in RUNS.items()})
    publish({f"{a}, {b}, {mode}": mixed(arguments.work, a, b, mode) for a, b, mode in PAIRS}, arguments.out)


if __name__ == "__main__":
    main()
