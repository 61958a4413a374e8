"""Throughput of two processes with one thread each against one process with one thread, on the bundled model.

    python benchmarks/processes.py [--rounds 4] [--pairs 2]

Runs alternate. A figure is the median of the rounds' seconds from metrics.jsonl, the first of each run left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def seconds(processes: int, rounds: int, out: Path) -> list[float]:
    """Seconds of each round but the first."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    words = [
        sys.executable, *launch, "-m", "tastemaker", "train", "ddpo-compressibility", "--rounds", str(rounds),
        "evaluation.every=100", "evaluation.prompts=1", "evaluation.per_prompt=2", "sampling.batch=32",
        "optimizer.rows=32", "--out", str(out),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    # A run's last round is evaluated by one process alone, and that is no part of a round's throughput.
    parts = [record for record in records if "round" in record][1:-1]
    return [record["seconds/sample"] + record["seconds/score"] + record["seconds/train"] for record in parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=2)
    arguments = parser.parse_args()
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(arguments.pairs):
            for processes in found:
                out = Path(folder) / f"{pair}-{processes}"
                found[processes] += seconds(processes, arguments.rounds, out)
                print(processes, [round(value, 2) for value in found[processes]], flush=True)
    medians = {f"{n} processes": round(statistics.median(values), 2) for n, values in found.items()}
    ratio = statistics.median(found[1]) / statistics.median(found[2])
    print(json.dumps({"seconds a round": medians, "throughput": round(ratio, 3)}, indent=1))


if __name__ == "__main__":
    main()
