"""Runs killed at any moment and resumed are the undisturbed run, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "kills.py"


def kill(tmp_path, count, seed):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--count", str(count), "--seed", str(seed), "--work", str(tmp_path)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.startswith("{"), done.stderr[-3000:]
    return json.loads(done.stdout)


def test_four_killed_runs_end_as_the_undisturbed_one(tmp_path):
    figures = kill(tmp_path, 4, seed=0)
    assert figures["equal"] == 4, figures["different"]
    assert figures["kills"] >= 4


@pytest.mark.slow
def test_two_hundred_killed_runs_end_as_the_undisturbed_one(tmp_path):
    figures = kill(tmp_path, 200, seed=1000)
    assert figures["equal"] == 200, figures["different"]
    assert {"sample", "score", "update", "save", "prune", "time"} <= figures["where"].keys()
