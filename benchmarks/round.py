"""Seconds of a round by phase on the bundled model at the demo's settings, and how they compare with the bare network.

    python benchmarks/round.py [--rounds 5]

The floor is the time of the same network calls alone, measured in between the rounds (design.md §5).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tastemaker.training.checkpoint import State
from tastemaker.training.loop import one_round
from tastemaker.training.presets import PRESETS
from tastemaker.training.run import start, timings
from tastemaker.training.session import Session


@torch.no_grad()
def forward_seconds(network: Any, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> float:
    """Seconds of one bare call without gradient."""
    begin = time.perf_counter()
    network(x, t, encoder_hidden_states=text, return_dict=False)
    return time.perf_counter() - begin


def backward_seconds(network: Any, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> float:
    """Seconds of one bare call with its backward pass."""
    begin = time.perf_counter()
    network(x, t, encoder_hidden_states=text, return_dict=False)[0].sum().backward()
    return time.perf_counter() - begin


def floor(session: Session) -> float:
    """Seconds that the network calls of one round take by themselves."""
    sampling, optimizer = session.config.sampling, session.config.optimizer
    network = session.accelerator.unwrap_model(session.model.network)
    text = session.model.encode(["a red star"], 1.0).text

    def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shape = (2 * rows, *session.model.latent_shape)
        return torch.randn(shape), torch.full((2 * rows,), 500), text.expand(2 * rows, -1, -1)

    forward = forward_seconds(network, *inputs(sampling.batch)) * sampling.steps * sampling.samples / sampling.batch
    calls = sampling.samples * sampling.steps / optimizer.rows
    backward = backward_seconds(network, *inputs(optimizer.rows)) * calls
    session.optimizer.zero_grad()
    return forward + backward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    config = replace(PRESETS["ddpo-compressibility"].config, rounds=arguments.rounds + 1)
    with tempfile.TemporaryDirectory() as folder:
        session = start(config, Path(folder), State())
        one_round(session)  # warms up
        session.seconds.clear()
        rows = []
        for _ in range(arguments.rounds):
            before = floor(session)
            began = time.perf_counter()
            one_round(session)
            record = timings(session, began)
            # Two single calls are a noisy estimate of many: the mean of before and after steadies it.
            bare = (before + floor(session)) / 2
            phases = {k.removeprefix("seconds/"): v for k, v in record.items() if k.startswith("seconds/")}
            rows.append({**phases, "floor": bare, "overhead": record["seconds/round"] / bare})
            print(json.dumps({k: round(v, 3) for k, v in rows[-1].items()}), flush=True)
    print("median", json.dumps({k: round(statistics.median(row[k] for row in rows), 3) for k in rows[0]}))


if __name__ == "__main__":
    main()
