"""The cost model of `tastemaker train --dry-run --machine.measure` against measured rounds of different settings.

    python benchmarks/cost_model.py [--rounds 1] [--only NAME ...]

For each setting, in a process of its own with one thread (OMP_NUM_THREADS=1): the probe, a round to warm up, and
measured rounds. All times are the process' processor time, so that what else the machine does is not counted; the
reward is local. The memory estimate is compared with how much the resident memory grew from the loaded model to
the end of the rounds.
Writes docs/results/cost-model.json after each setting, and keeps what it has of others.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tastemaker.benchmarking.probe import measure_session
from tastemaker.cli.settings import read
from tastemaker.cli.train import TrainArgs
from tastemaker.runs.checkpoint import State
from tastemaker.training.cost import round_seconds, round_work
from tastemaker.training.evaluations import evaluate_run
from tastemaker.training.isolation import isolated
from tastemaker.training.plan import make_plan
from tastemaker.training.preflight import preflight
from tastemaker.training.rounds import one_round
from tastemaker.training.setup import candidate_steps, start

OUT = Path(__file__).resolve().parents[1] / "docs/results/cost-model.json"
SMALL = ["sampling.samples=8", "sampling.per_prompt=4", "sampling.batch=8", "optimizer.rows=8", "optimizer.updates=1",
    "sampling.steps=10"]  # fmt: skip
BACKPROP = [*SMALL, "sampling.per_prompt=1"]
SETTINGS: dict[str, list[str]] = {
    "DDPO": ["ddpo-compressibility", *SMALL],
    "20 steps": ["ddpo-compressibility", *SMALL, "sampling.steps=20"],
    "batches of 2, rows of 3": ["ddpo-compressibility", *SMALL, "sampling.batch=2", "optimizer.rows=3"],
    "window of 4 random steps": ["ddpo-compressibility", *SMALL, "window=random", "window.size=4"],
    "first_share 0.5": ["ddpo-compressibility", *SMALL, "optimizer.first_share=0.5"],
    "no guidance": ["ddpo-compressibility", *SMALL, "sampling.guidance=1"],
    "branches": ["ddpo-compressibility", *SMALL, "sampling.branches=4"],
    "single pass": ["ddpo-compressibility-sf", *SMALL, "optimizer.single_pass=true"],
    "DPOK, with its reference": ["dpok-compressibility", *SMALL],
    "whole network": ["ddpo-compressibility", *SMALL, "tuning.mode=full", "optimizer.lr=1e-5"],
    "gradient checkpointing": ["ddpo-compressibility", *SMALL, "tuning.gradient_checkpointing=true"],
    "48 x 48 pixels": ["ddpo-compressibility", *SMALL, "sampling.height=48", "sampling.width=48"],
    "bundled-flow": ["ddpo-compressibility", *SMALL, "model=bundled-flow"],
    "bundled-pixel": ["ddpo-compressibility", *SMALL, "model=bundled-pixel", "sampling.guidance=1"],
    "AlignProp, steps made again": ["alignprop-compressibility", *BACKPROP],
    "AlignProp, nothing made again": ["alignprop-compressibility", *BACKPROP, "algorithm.checkpointing=none"],
    "DRaFT": ["draft-compressibility", *BACKPROP],
}
"""Names with a preset and its changes."""


def one(words: list[str], rounds: int) -> dict[str, Any]:
    """Predicts and measures in this process."""
    torch.set_num_threads(1)
    args, _ = read(TrainArgs, words, "train")
    config = replace(args.settings, trackers=())
    with isolated():
        memory = make_plan(config, preflight(config, None)).memory
    with isolated(), tempfile.TemporaryDirectory() as folder:
        session = start(config, Path(folder), State())
        if any(reward.unmeasured for reward in session.combinations.values()):
            evaluate_run(session)
        loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        seconds = measure_session(session, lambda device: time.process_time())
        one_round(session)
        stochastic, found, predicted = candidate_steps(session.task.sde), [], []
        for _ in range(rounds):
            work = round_work(config, stochastic, session.state.round + 1)
            predicted.append(round_seconds(work, seconds))
            begin = time.process_time()
            one_round(session)
            found.append(time.process_time() - begin)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - loaded
    held = ("network", "text encoder and VAE", "prompt states")
    measured, whole = sum(found) / rounds, sum(sum(parts.values()) for parts in predicted) / rounds
    return {
        "settings": words,
        "predicted": round(whole, 3),
        "measured": round(measured, 3),
        "error": round(whole / measured - 1, 3),
        "parts": {name: round(value, 3) for name, value in predicted[0].items()},
        "memory predicted": round(sum(value for name, value in memory.items() if name not in held)),
        "memory grown": grown,
    }


def add(name: str, rounds: int) -> None:
    """Measures a setting, and adds it to the file."""
    found = json.loads(OUT.read_text()) if OUT.is_file() else {}
    mine = one(SETTINGS[name], rounds)
    found = {key: value for key, value in (found | {name: mine}).items() if key in SETTINGS}
    OUT.write_text(json.dumps({key: found[key] for key in SETTINGS if key in found}, indent=1) + "\n")
    print(f"{name:32} {mine['predicted']:8.2f} {mine['measured']:8.2f} {mine['error']:+.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    options = parser.parse_args()
    failed = []
    for name in options.only:
        # Forked, with everything imported and nothing computed yet.
        child = multiprocessing.get_context("fork").Process(target=add, args=(name, options.rounds))
        child.start()
        child.join()
        failed += [name] * bool(child.exitcode)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
