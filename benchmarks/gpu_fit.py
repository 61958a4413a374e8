"""The most images and rows in a pass that fit a card of a given size: rounds with more and more, until memory ends.

    python benchmarks/gpu_fit.py --card-gib 24 --rows 1,2,4,8 ddpo-compressibility-sd14-lora --model gpu_models:sd15

Everything after the options is what `tastemaker bench` takes. For each number of `--rows` the run is started anew
with `sampling.batch`, `optimizer.rows` and `sampling.samples` of that number, and makes two rounds of one update, so
that AdamW has its state. The first number that runs out of memory ends the search. The limit is
`torch.cuda.set_per_process_memory_fraction`, which counts what PyTorch holds; `--reserve-gib` is left for CUDA itself.
On a CPU there is no limit, and the search ends with the last number.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tastemaker.benchmarking.bench import peak_memory, plain_round
from tastemaker.cli.bench import BenchArgs
from tastemaker.cli.settings import read
from tastemaker.config.schema import Config
from tastemaker.runs.checkpoint import State
from tastemaker.training.isolation import isolated
from tastemaker.training.plan import estimated_memory, round_calls
from tastemaker.training.preflight import preflight
from tastemaker.training.setup import start

GIB = 2**30


@dataclass(frozen=True)
class Fit:
    """A number of rows that fits."""

    rows: int
    peak_gib: float
    """Of tensors on a GPU, of the process on a CPU."""
    reserved_gib: float | None
    """What PyTorch held on the GPU: tensors and what lies between them."""
    estimated_gib: float
    """By `tastemaker train --dry-run`."""
    seconds: float
    """Of the second round."""


def search(rows: Iterable[int], attempt: Callable[[int], Fit]) -> tuple[list[Fit], int | None]:
    """Those that fit, and the first that does not, with which the search ends; None where all fit."""
    found: list[Fit] = []
    for count in rows:
        try:
            found.append(attempt(count))
        except torch.OutOfMemoryError:
            return found, count
    return found, None


def with_rows(config: Config, rows: int) -> Config:
    """The run with as many images sampled, and rows trained, at once."""
    return replace(
        config,
        sampling=replace(config.sampling, samples=rows, batch=rows, per_prompt=1),
        optimizer=replace(config.optimizer, rows=rows, updates=1),
        trackers=(),
    )


def attempt(config: Config, device: torch.device) -> Fit:
    """Two rounds. Raises OutOfMemoryError where they do not fit."""
    facts = preflight(config, None)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with isolated(), tempfile.TemporaryDirectory() as folder:
        session = start(config, Path(folder), State())
        plain_round(session)
        seconds = plain_round(session).seconds
    calls = round_calls(config, facts.stochastic, 1)
    return Fit(
        rows=config.optimizer.rows,
        peak_gib=peak_memory(device),
        reserved_gib=torch.cuda.max_memory_reserved(device) / GIB if device.type == "cuda" else None,
        estimated_gib=sum(estimated_memory(config, facts, max(calls.backward)).values()) / GIB,
        seconds=seconds,
    )


def limit(card_gib: float, reserve_gib: float, device: torch.device) -> float | None:
    """Limits what PyTorch may hold to a card's memory without the reserve [GiB], which is returned; None on a CPU."""
    if device.type != "cuda":
        return None
    whole = torch.cuda.get_device_properties(device).total_memory / GIB
    allowed = min(card_gib, whole) - reserve_gib
    torch.cuda.set_per_process_memory_fraction(allowed / whole, device)
    return allowed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--card-gib", type=float, default=24.0)
    parser.add_argument("--reserve-gib", type=float, default=1.0, help="for CUDA's libraries, outside PyTorch")
    parser.add_argument("--rows", default="1,2,4,8,16,32,64", help="numbers that are tried, in this order")
    arguments, words = parser.parse_known_args()
    config = read(BenchArgs, words, "bench")[0].settings
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    allowed = limit(arguments.card_gib, arguments.reserve_gib, device)
    with contextlib.redirect_stdout(sys.stderr):
        found, too_many = search(
            map(int, arguments.rows.split(",")), lambda rows: attempt(with_rows(config, rows), device)
        )
    result: dict[str, Any] = {
        "limit_gib": allowed, "fits": [asdict(one) for one in found], "largest": found[-1].rows if found else 0,
        "too_many": too_many,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
