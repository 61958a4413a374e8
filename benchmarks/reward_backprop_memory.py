"""Reward, time and memory of AlignProp by what it keeps for the backward pass, as in AlignProp's Table 3.

    python benchmarks/reward_backprop_memory.py [--rounds 12] [--seeds 3] [--work build/reward-backprop-memory]

`none` (the full graph), `step`, `block` and `edict` (the coupled sampler, whose states are found again by inversion) on
the bundled model with the settings of alignprop-compressibility, without early stopping. Rewards are those of ordinary
runs: of the last evaluation, which samples by DDIM, in standard deviations of the base model's; and of the last round's
own images, which for `edict` are the coupled sampler's. Time and peak memory are those of the same rounds without
evaluations, each kind in a process of its own: processor seconds a round of the one thread, and the most that the
process had resident (that tensors had on a GPU, with seconds by the clock). What is there already is not made again.
Writes a JSON file of figures to docs/results.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from running import publish, records, run_all

KINDS = ("none", "step", "block", "edict")
PRESET = "alignprop-compressibility"


def words(kind: str, rounds: int, seed: int) -> list[str]:
    """Settings that the kinds do not share with the preset."""
    return [f"algorithm.checkpointing={kind}", f"rounds={rounds}", f"seed={seed}", "early_stop.metric=none"]


def cost(settings: list[str]) -> dict[str, Any]:
    """Seconds of each round, and GiB at their peak and before them, in this process."""
    import torch

    import tastemaker as tm
    from tastemaker.benchmarking.bench import peak_memory
    from tastemaker.benchmarking.trace import clock
    from tastemaker.runs.checkpoint import State
    from tastemaker.training.isolation import isolated
    from tastemaker.training.rounds import one_round
    from tastemaker.training.setup import start

    torch.set_num_threads(1)
    config = tm.preset(PRESET, *settings)
    seconds: list[float] = []
    with TemporaryDirectory() as folder, isolated():
        session = start(config, Path(folder), State())
        device = session.accelerator.device
        now = (lambda: clock(device)) if device.type == "cuda" else time.process_time
        before = peak_memory(device)
        for _ in range(config.rounds):
            began = now()
            one_round(session)
            seconds.append(now() - began)
        return {"seconds": seconds, "before": before, "peak": peak_memory(device)}


def costs(work: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """`cost` of each kind, one after the other, from files that are there already or else measured."""
    found = {}
    for kind in KINDS:
        file = work / f"cost-{kind}-{rounds}.json"
        if not file.is_file():
            command = [sys.executable, *sys.argv, "--one", kind]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            told = subprocess.check_output(command, env=environment, text=True).splitlines()[-1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(told)
        found[kind] = json.loads(file.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=2, help="runs at a time")
    parser.add_argument("--work", type=Path, default=Path("build/reward-backprop-memory"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/reward-backprop-memory"))
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rounds = arguments.rounds
    if arguments.one:
        print(json.dumps(cost(words(arguments.one, rounds, 0))))
        return
    measured = costs(arguments.work, rounds)
    folders = run_all(
        {
            (kind, seed): (arguments.work / f"{kind}-{rounds}-{seed}", [PRESET, *words(kind, rounds, seed)])
            for seed in range(arguments.seeds)
            for kind in KINDS
        },
        arguments.lanes,
    )
    table: dict[str, Any] = {"rounds": rounds, "seeds": arguments.seeds}
    for kind in KINDS:
        runs = [records(folders[kind, seed]) for seed in range(arguments.seeds)]
        rewards = [evaluations[-1]["eval/reward/base_stds"] for _, evaluations in runs]
        table[kind] = {
            "reward in base standard deviations": round(statistics.fmean(rewards), 3),
            "each seed's": [round(reward, 3) for reward in rewards],
            "shows the prompt": round(statistics.fmean(e[-1]["eval/judge/correct"] for _, e in runs), 3),
            "diversity": round(statistics.fmean(e[-1]["eval/diversity"] for _, e in runs), 3),
            "reward of the last round's own images": round(statistics.fmean(r[-1]["reward/mean"] for r, _ in runs), 3),
            "seconds a round": round(statistics.fmean(measured[kind]["seconds"]), 2),
            "GiB before": round(measured[kind]["before"], 3),
            "GiB at the peak": round(measured[kind]["peak"], 3),
        }
    publish(table, arguments.out)


if __name__ == "__main__":
    main()
