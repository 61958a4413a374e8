"""`tastemaker iterate --launcher`: the same run as in the process itself, signals, and launchers that fail."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tastemaker as tm
from tastemaker.cli.main import main
from tastemaker.errors import ConfigError, ProcessLost
from tastemaker.iteration import iterate, lineage
from tastemaker.iteration.launching import count_processes, launch
from tastemaker.iteration.settings import IterationSettings
from tastemaker.training.run import train
from tastemaker.training.signals import Interrupted, Preempted

WORDS = [
    "ddpo-compressibility", "--tasks", "12", "--label.images", "3", "--label.confirm=false", "--simulate",
    "--simulated.count", "1", "--simulated.utility", "colourfulness", "--simulated.temperature", "0.01",
    "--prompts", "bundled-eight", "--network.kind", "head", "--iterations", "1", "--reward-model.epochs", "2",
    "sampling.steps=2", "sampling.samples=4", "sampling.per_prompt=2", "evaluation.prompts=2",
    "evaluation.per_prompt=2", "evaluation.kl_images=0", "rounds=1", "optimizer.updates=1",
]  # fmt: skip


def test_a_launched_alignment_is_the_one_in_the_process(tmp_path, capfd):
    """Python alone is a launcher of one process. The first one given ends before it begins to train."""
    out, failing = tmp_path / "out", tmp_path / "failing"
    failing.write_text(f'#!/bin/sh\n[ "$3" = train ] && exit 1\nexec {shlex.quote(sys.executable)} "$@"\n')
    failing.chmod(0o755)
    assert main(["iterate", *WORDS, "--out", str(out), "--launcher", shlex.quote(str(failing))]) == 69
    said = capfd.readouterr()
    assert (
        f"the alignment ended with exit code 1, for reasons that are said above: {failing} -m tastemaker train"
        in said.err
    )
    assert f"go on by: tastemaker iterate --resume {out}" in said.out
    assert lineage.read(out)[0].run is None
    assert main(["iterate", "--resume", str(out), "--launcher", shlex.quote(sys.executable)]) == 0
    run = out / lineage.read(out)[0].run
    assert (run / "env.json").read_text().count("--config") == 1
    train(tm.load_run(run).config, tmp_path / "here", command="")
    launched, here = (load_file(one / "adapter/pytorch_lora_weights.safetensors") for one in (run, tmp_path / "here"))
    assert launched.keys() == here.keys()
    steps = {name: weight for name, weight in launched.items() if "lora_B" in name}  # which are 0 before the update
    assert steps
    for name, weight in steps.items():
        # Another number of threads rounds otherwise, and AdamW's step is as large where a gradient is nearly 0.
        assert weight.norm() > 1e-3
        assert (weight - here[name]).norm() < 0.2 * weight.norm()


@pytest.mark.parametrize(
    ("launcher", "reason"),
    [
        ("no-such-launcher -n 8", "is 'no-such-launcher -n 8', but there is no such program"),
        ("", "is '', but there is no such program"),
        ("accelerate 'launch", '"accelerate \'launch" is no command: No closing quotation'),
        ("sh -c 'echo no such flag; exit 3'", "ended with exit code 3 without having started `python -m MODULE`"),
        ("true", "the launcher 'true' ended with exit code 0 without having started `python -m MODULE`"),
        (f"env WORLD_SIZE=3 {shlex.quote(sys.executable)}", "(sampling.samples = 4, optimizer.updates = 1), which 3 "),
    ],
)
def test_launchers_that_cannot_run_are_refused_before_anything_is_done(tmp_path, launcher, reason, capsys):
    for more in ([], ["--dry-run"]):
        assert main(["iterate", *WORDS, "--out", str(tmp_path / "out"), "--launcher", launcher, *more]) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_a_launcher_says_of_its_failure_is_told():
    with pytest.raises(ConfigError, match=r"before anything else:\nno such flag$"):
        count_processes(["sh", "-c", "echo no such flag; exit 3"])


def test_the_processes_are_counted():
    assert count_processes([]) == 1
    assert count_processes([sys.executable]) == 1
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert count_processes(launcher) == 2


def test_more_processes_than_divide_an_update_are_refused_when_going_on(tmp_path, capsys):
    (tmp_path / "iterate.yaml").write_text("train:\n  sampling:\n    samples: 4\n")
    launcher = f"env WORLD_SIZE=3 {shlex.quote(sys.executable)}"
    for more in ([], ["--dry-run"]):
        assert main(["iterate", "--resume", str(tmp_path), "--launcher", launcher, *more]) == 2
        assert "3 processes do not divide" in capsys.readouterr().err


def test_a_run_that_has_begun_goes_on_by_the_launcher(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(iterate, "launch", lambda launcher, arguments: asked.append((launcher, arguments)))
    monkeypatch.setattr(iterate, "saved_round", lambda folder: 3)
    monkeypatch.setattr(lineage, "adapter_digest", lambda run: "a")
    work = iterate._Work(
        IterationSettings(), tmp_path, [lineage.Record(1)], "", iterate.NO_WAITING, ("torchrun",), print
    )
    assert iterate._align(work).run == "iteration-1/run"
    assert asked == [(("torchrun",), ["resume", str(tmp_path / "iteration-1/run")])]


def test_several_processes_are_not_to_start_the_command_itself(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["iterate", *WORDS]) == 2
    assert "give the launcher as in --launcher 'accelerate launch" in capsys.readouterr().err


@pytest.mark.parametrize(("processes", "said"), [(1, "1 process"), (2, "2 processes")])
def test_the_plan_names_it_and_its_processes(processes, said, capsys):
    launcher = f"env WORLD_SIZE={processes} {shlex.quote(sys.executable)}"
    assert main(["iterate", *WORDS, "--dry-run", "--launcher", launcher]) == 0
    assert capsys.readouterr().out.endswith(f"4 images a round, by {launcher} on {said}\n")


CHILD = """
import pathlib, signal, sys, time
folder = pathlib.Path({folder!r})
def end(number, frame):
    (folder / "told").touch()
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
(folder / "started").touch()
while not (folder / "ended").exists():
    time.sleep(0.02)
(folder / "finished").touch()
"""


def launched(folder: Path, number: int) -> None:
    """Launches a program that waits, and sends this process a signal once it runs."""
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]

    def interrupt():
        while not (folder / "started").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)
        if number == signal.SIGINT:
            time.sleep(0.5)  # longer than Python waits for a program before it kills it
            (folder / "ended").touch()

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        launch([sys.executable, "-c", CHILD.format(folder=str(folder))], ["train"])
    finally:
        thread.join()
        assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_ctrl_c_waits_for_the_run_to_end(tmp_path):
    with pytest.raises(Interrupted, match="stopped by Ctrl-C"):
        launched(tmp_path, signal.SIGINT)
    assert (tmp_path / "finished").exists()


def test_sigterm_is_handed_on(tmp_path):
    with pytest.raises(Preempted, match="stopped by SIGTERM"):
        launched(tmp_path, signal.SIGTERM)
    assert (tmp_path / "told").exists()
    assert not (tmp_path / "finished").exists()


def test_in_another_thread_than_the_main_one():
    found: list[BaseException] = []

    def call():
        try:
            launch([sys.executable, "-c", "raise SystemExit(3)"], ["train"])
        except ProcessLost as error:
            found.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "exit code 3" in str(found[0])
