"""A run on several processes is the run on one; one that dies ends the others; signals reach all of them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from launched import run_and_exit, run_lines
from safetensors.torch import load_file

from forked import Child, Group, finish, node, under_torchrun
from tastemaker.cli.main import main
from tastemaker.runs.checkpoint import newest as checkpoint_of

SCRIPT = Path(__file__).parent / "launched.py"
CPU = {"ACCELERATE_USE_CPU": "true"}
ENVIRONMENT = os.environ | CPU | {"OMP_NUM_THREADS": "1"}
SETTINGS = [
    "--reward", "smooth:redness", "--prompts", "ddpo-animals", "--rounds", "3", "sampling.steps=4",
    "sampling.samples=16", "sampling.per_prompt=4", "sampling.batch=2", "optimizer.updates=2", "optimizer.rows=8",
    "optimizer.lr=1e-3", "evaluation.every=3", "evaluation.prompts=2", "evaluation.per_prompt=2",
    "advantage.min_count=2", "evaluation.kl_images=2", "over_optimisation.keep_best=reward/mean",
]  # fmt: skip


def words(checkpoint, out, *more):
    where = [] if out is None else ["--out", str(out)]
    return ["train", "ddpo-compressibility", "--model", str(checkpoint), *where, *SETTINGS, *more]


def torchrun(count, arguments, folder=None):
    """The command line as a user starts it on several processes."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", str(SCRIPT),
         *arguments],
        env=ENVIRONMENT, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run):
    return load_file(run / "checkpoints/step-000003/weights.safetensors")


def distance(one, two):
    a, b = (torch.cat([w[name].flatten().double() for name in sorted(w)]) for w in (one, two))
    return ((a - b).norm() / a.norm()).item()


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    assert main(words(checkpoint, run)) == 0
    return run


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_same_weights_rewards_and_statistics_after_three_rounds(alone, checkpoint, tmp_path, count):
    # Without --out: the processes agree on the folder that the first one chooses.
    run = tmp_path / "runs/ddpo-compressibility-1"
    child = torchrun(count, words(checkpoint, None), folder=tmp_path)
    output, errors = child.communicate(timeout=240)
    assert child.returncode == 0, errors[-3000:]
    assert [path.name for path in run.parent.iterdir()] == [run.name]
    assert output.count("loading") == 1  # one process speaks
    assert distance(weights(alone), weights(run)) < 1e-5
    one, many = (json.loads((r / "checkpoints/step-000003/state.json").read_text())["state"] for r in (alone, run))
    assert one["past_rewards"].keys() == many["past_rewards"].keys()
    for prompt, rewards in one["past_rewards"].items():
        assert rewards == pytest.approx(many["past_rewards"][prompt], abs=1e-6), prompt
    assert one["reward_queries"] == many["reward_queries"] == 48
    for a, b in zip(metrics(alone), metrics(run), strict=True):
        for key in ("round", "reward/mean", "reward/std", "reward/min", "reward/max", "advantage/std"):
            # Until the first update nothing depends on how sums are cut; after it, their last digits do.
            wanted = a.get(key) if a.get("round", 1) == 1 else pytest.approx(a[key], abs=1e-5)
            assert b.get(key) == wanted, key
        if "evaluation" in a:  # the KL to the base model, and the rewards by which the best model is kept
            assert b["eval/kl"] == pytest.approx(a["eval/kl"], rel=1e-4, abs=1e-6)
            assert b["eval/reward/mean"] == pytest.approx(a["eval/reward/mean"], abs=1e-5)
    assert one["best_round"] == many["best_round"] == 3
    best, same = (load_file(r / "best/pytorch_lora_weights.safetensors") for r in (alone, run))
    assert distance(best, same) < 1e-5


def test_gradients_that_are_not_synchronised_would_be_noticed(alone, checkpoint, tmp_path):
    run = tmp_path / "run"
    Group(2, run_lines, "--unsynchronised", *words(checkpoint, run), log=tmp_path / "log").finish()
    assert distance(weights(alone), weights(run)) > 1e-3


def test_a_process_that_dies_ends_the_others_with_the_reason(checkpoint, tmp_path):
    run = tmp_path / "run"
    arguments = ["--die-in-round", "2", *words(checkpoint, run, "--rounds", "1000")]
    errors = finish(Child(under_torchrun, 2, run_and_exit, *arguments, log=tmp_path / "log", environment=CPU), 1)
    assert "Signal 9 (SIGKILL)" in errors, errors[-3000:]
    assert (run / "checkpoints/step-000001").is_dir()


def two_nodes(folder, *arguments):
    """Two launchers with a process each, which meet as those of two machines do."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    return [
        Child(node, endpoint, run_and_exit, *arguments, log=folder / f"node-{number}.log", environment=CPU)
        for number in range(2)
    ]


def test_two_machines_are_one_process(alone, checkpoint, tmp_path):
    run = tmp_path / "run"
    nodes = two_nodes(tmp_path, *words(checkpoint, run))
    assert sum(finish(child).count("loading") for child in nodes) == 1
    assert distance(weights(alone), weights(run)) < 1e-5
    assert metrics(run)[-2]["reward_queries"] == 48


SMALLER = ["--rounds", "1000", "sampling.samples=4", "sampling.per_prompt=2", "optimizer.updates=1", "sampling.steps=2",
    "evaluation.prompts=1", "evaluation.kl_images=0"]  # fmt: skip


@pytest.mark.parametrize(
    ("act", "rank", "said"),
    [
        ("die", 0, "another process of this run has ended, or cannot be reached any more"),
        pytest.param("die", 1, "another process of this run has ended", marks=pytest.mark.slow),
        ("stop", 1, "process 1 on [^ ]+ of this run gave no sign of life for 3 s"),
    ],
    ids=["first dies", "second dies", "second stops"],
)
def test_a_machine_that_fails_ends_the_run_with_a_checkpoint(checkpoint, tmp_path, act, rank, said):
    """The launcher and its process are killed, or stop without closing a connection, in the updates of round 2.

    Either launcher may have the store.
    """
    run = tmp_path / "run"
    fails = ["--node-in-round", "2", act, str(rank), str(tmp_path)]
    nodes = two_nodes(tmp_path, *fails, *words(checkpoint, run, *SMALLER))
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "failed").exists():
            assert time.monotonic() < deadline, [child.output() for child in nodes]
            time.sleep(0.02)
        sentence = f"tastemaker: {said}.*; saved up to round 1; go on with: tastemaker resume {run}\n"
        deadline = time.monotonic() + 60
        # Not until the launcher ends: where the store stopped too, it waits for that for a minute.
        while not any(re.search(sentence, child.output()) for child in nodes):
            assert time.monotonic() < deadline, [child.output() for child in nodes]
            time.sleep(0.05)
        assert checkpoint_of(run)[0] == run / "checkpoints/step-000001"
    finally:
        for child in nodes:
            child.process.kill()
        if (tmp_path / "failed").exists():
            with suppress(ProcessLookupError):
                os.kill(int((tmp_path / "failed").read_text()), signal.SIGKILL)


def wait_until_here(folder, count, child):
    """Until all processes wait for the signal."""
    deadline = time.monotonic() + 240
    while not all((folder / f"here-{rank}").exists() for rank in range(count)):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)


@pytest.mark.parametrize("count", [1, 2])
def test_sigterm_saves_and_a_resumed_run_is_the_uninterrupted_one(alone, checkpoint, tmp_path, count):
    """In the middle of round 2; torchrun hands the signal on to its processes."""
    run = tmp_path / "run"
    arguments = words(checkpoint, run, "--rounds", "500", "checkpoint.every=1000")
    arguments = ["--sigterm-in-round", "2", str(tmp_path), *arguments]
    how = (under_torchrun, count, run_and_exit) if count > 1 else (run_lines,)
    child = Child(*how, *arguments, log=tmp_path / "log", environment=CPU)
    wait_until_here(tmp_path, count, child)
    child.send_signal(signal.SIGTERM)
    errors = finish(child, 1 if count > 1 else 75)  # torchrun has an exit code of its own
    assert "stopped by SIGTERM after round 2 of 500; saved up to round 2; go on with: " in errors
    assert max(record["round"] for record in metrics(run) if "round" in record) == 2
    assert (run / "checkpoints/step-000002").is_dir()
    resumed = ["resume", str(run), "--rounds", "3"]
    if count == 1:
        assert main(resumed) == 0
        one, two = weights(alone), weights(run)
        assert all(one[name].equal(two[name]) for name in one)
    else:
        Group(count, run_lines, *resumed, log=tmp_path / "log").finish()
        assert distance(weights(alone), weights(run)) < 1e-5


def test_another_number_of_processes_or_version_is_refused_unless_asked_for(
    alone, checkpoint, tmp_path, monkeypatch, capsys
):
    from tastemaker.runs import fingerprint

    run = tmp_path / "run"
    assert main(words(checkpoint, run, "--rounds", "1")) == 0
    versions = fingerprint.versions()
    monkeypatch.setattr(fingerprint, "versions", lambda: versions | {"torch": "9.9.9"})
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("lr: 0.001", "lr: 0.002"))
    capsys.readouterr()
    assert main(["resume", str(run), "--rounds", "3"]) == 2
    errors = capsys.readouterr().err
    assert f"torch {versions['torch']} -> 9.9.9" in errors
    assert "optimizer.lr 0.001 -> 0.002" in errors
    assert "--allow-inexact" in errors
    assert len(metrics(run)) == 3  # untouched
    assert main(["resume", str(run), "--rounds", "3", "--allow-inexact"]) == 0
    assert "not as it was: optimizer.lr 0.001 -> 0.002" in capsys.readouterr().out
    assert distance(weights(alone), weights(run)) > 1e-6


def test_another_number_of_processes_is_refused(checkpoint, tmp_path):
    run = tmp_path / "run"
    assert main(words(checkpoint, run, "--rounds", "1")) == 0
    said = Group(2, run_lines, "resume", str(run), "--rounds", "3", log=tmp_path / "log").finish(2)
    assert "processes 1 -> 2" in said
