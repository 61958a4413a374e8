"""Runs killed at any moment and resumed are the undisturbed run, bit for bit."""

import json

import kills
import pytest

from drawing import undrawn
from forked import Child, finish


def without_drawing(words):
    with undrawn():
        return kills.main(words)


def kill(tmp_path, count, seed):
    """In a process that has never trained, as trials are forked from it."""
    words = ["--count", str(count), "--seed", str(seed), "--work", str(tmp_path / "work")]
    said = finish(Child(without_drawing, words, log=tmp_path / "log"), seconds=3600)
    return json.loads(said[said.index("{") :])


def test_two_killed_runs_end_as_the_undisturbed_one(tmp_path):
    """Killed twice and three times, by time and at chosen moments."""
    figures = kill(tmp_path, 2, seed=1)
    assert figures["equal"] == 2, figures["different"]
    assert figures["kills"] >= 4
    assert "time" in figures["where"]
    assert len(figures["where"]) > 1


@pytest.mark.slow
def test_two_hundred_killed_runs_end_as_the_undisturbed_one(tmp_path):
    figures = kill(tmp_path, 200, seed=1000)
    assert figures["equal"] == 200, figures["different"]
    assert {"sample", "score", "update", "save", "prune", "time"} <= figures["where"].keys()
