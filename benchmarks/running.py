"""Runs of `tastemaker train` side by side, one thread each, and what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def run(folder: Path, words: Sequence[str]) -> Path:
    """One run at `folder`, unless it is there already. Ends the program where it fails."""
    if (folder / "report.html").is_file():
        return folder
    command = [sys.executable, "-m", "tastemaker", "train", *words, "--out", str(folder)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    print(folder, done.stdout.splitlines()[-2], flush=True)
    return folder


def run_all(runs: Mapping[Any, tuple[Path, Sequence[str]]], lanes: int = 2) -> dict[Any, Path]:
    """All runs, `lanes` at a time, in their order; their folders by their keys."""
    with ThreadPoolExecutor(lanes) as pool:
        return dict(zip(runs, pool.map(lambda given: run(*given), runs.values()), strict=True))


def records(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rounds and evaluations of a run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "round" in line], [line for line in lines if "evaluation" in line]


def publish(result: Any, out: Path) -> None:
    """Writes the figures as JSON where docs refer to them, and prints them."""
    told = json.dumps(result, indent=1)
    out.with_suffix(".json").write_text(told + "\n")
    print(told)
