"""Real runs whose reward is on a server that fails: no made-up number, bounded waiting, and no work lost."""

from __future__ import annotations

import json
import math
import signal
import time

import pytest
from safetensors.torch import load_file
from test_runs import SETTINGS, exit_with_main, metrics

from forked import Child, finish
from serving import Scripted, changed, cut, good, hang_up, raw, redness, served, slow
from tastemaker.cli.main import main
from tastemaker.runs.checkpoint import saved_round

FAST = [
    "remote.format=safetensors", "remote.batch=4", "remote.wait=0.4", "remote.timeout=20", "remote.tries=2",
    "sampling.batch=4", "checkpoint.every=2",
]  # fmt: skip
"""3 rounds of 8 images, and evaluations of 4 at the start, after round 2 and after round 3: 1 + 2 + 2 + 1 + 2 + 1
requests."""
REQUESTS = 9
ROUND_2 = 4
"""The second request of round 2, counted from 0."""
EVALUATION = 5
"""That of the evaluation after round 2."""


@pytest.fixture(autouse=True)
def _no_token_and_no_reports(monkeypatch):
    monkeypatch.delenv("TASTEMAKER_REWARD_TOKEN", raising=False)
    monkeypatch.setattr("tastemaker.training.run.write_report", lambda folder: folder / "report.html")  # a second each


def words(checkpoint, out, reward, *more):
    fixed = ["train", "ddpo-compressibility", "--model", str(checkpoint), "--out", str(out)]
    return [*fixed, "--reward", reward, *SETTINGS, *FAST, *more]


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    """The run that nothing went wrong in."""
    run = tmp_path_factory.mktemp("remote") / "whole"
    with Scripted([]) as server:
        assert main(words(checkpoint, run, server.url)) == 0
        assert len(server.asked) == REQUESTS
    return run


def same(one, two):
    """Both runs came to the same end, with the same figures on the way."""
    assert metrics(one) == metrics(two)
    for name in ("weights", "optimizer"):
        first, second = (load_file(run / f"checkpoints/step-000003/{name}.safetensors") for run in (one, two))
        assert first.keys() == second.keys()
        assert all(first[key].equal(second[key]) for key in first), name


def test_a_reward_on_a_server_is_that_reward(checkpoint, tmp_path):
    """Through the real server, exact images: the run of the local reward, to the bit."""
    local = ["train", "ddpo-compressibility", "--model", str(checkpoint), *SETTINGS, "--reward", "jpeg-compressibility"]
    assert main([*local, "--rounds", "1", "--out", str(tmp_path / "local")]) == 0
    with served("jpeg-compressibility") as url:
        assert main(words(checkpoint, tmp_path / "served", url, "--rounds", "1", "sampling.batch=8")) == 0
    assert metrics(tmp_path / "local") == metrics(tmp_path / "served")


PASSING = [hang_up, cut, raw(b"{}", 500), raw(b"", 503, Retry_After="0"), changed(rewards=[math.nan] * 4), slow(5)]


def test_faults_that_pass_leave_no_trace(whole, checkpoint, tmp_path):
    """Every request has its fault before it is answered."""
    with Scripted(lambda n: good if n % 2 else PASSING[n // 2 % len(PASSING)]) as server:
        assert main(words(checkpoint, tmp_path / "run", server.url, "remote.wait=60", "remote.timeout=2")) == 0
        assert len(server.asked) == 2 * REQUESTS
    same(whole, tmp_path / "run")


LASTING = [
    (raw(b'{"detail": "no memory"}', 500), 69, "status 500: no memory"),
    (cut, 69, "RemoteProtocolError"),
    (slow(5), 69, "no whole answer within 2 s"),
    (changed(rewards=lambda values: values[1:]), 2, "it has 3 rewards for 4 images"),
    (changed(rewards=lambda values: [math.nan, *values[1:]]), 2, "nan, which is not finite"),
    (changed(version="2"), 2, "cannot be mixed"),
    (raw(b'{"detail": "go away"}', 403), 2, "status 403: go away"),
]


@pytest.mark.parametrize(("when", "faults"), [(ROUND_2, LASTING), (EVALUATION, LASTING[:5:4])])
def test_a_fault_that_lasts_ends_in_a_checkpoint_and_the_run_can_go_on(
    when, faults, whole, checkpoint, tmp_path, capsys
):
    """The run fails, and each time that it is resumed it fails in another way; then it goes on as if nothing were."""
    run, port = tmp_path / "run", 0
    arguments, done = None, 1 if when == ROUND_2 else 2
    for answer, code, said in faults:
        # Resumed, it begins with round 2, or with the evaluation that is missing.
        first = when if port == 0 else 1 if when == ROUND_2 else 0
        with Scripted(lambda n, first=first, answer=answer: answer if n >= first else good, port) as server:
            port = server.port
            arguments = arguments or words(checkpoint, run, server.url, "remote.timeout=2")
            began = time.monotonic()
            assert main(arguments) == code
            assert time.monotonic() - began < 60
        errors = capsys.readouterr().err.strip()
        assert said in errors
        assert errors.endswith(f"saved up to round {done}; go on with: tastemaker resume {run}")
        # checkpoint.every is 2: it was saved because of the failure.
        assert saved_round(run) == done
        assert metrics(run) == metrics(whole)[: done + 1]
        assert not (run / "adapter").exists()
        arguments = ["resume", str(run)]
    with Scripted([], port):
        assert main(["resume", str(run)]) == 0
    same(whole, run)


def test_nobody_there_at_the_start(checkpoint, tmp_path, capsys):
    began = time.monotonic()
    assert main(words(checkpoint, tmp_path / "run", "http://127.0.0.1:9")) == 69
    assert time.monotonic() - began < 60
    assert "http://127.0.0.1:9: ConnectError" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_wants_the_same_reward_wherever_it_is(whole, checkpoint, tmp_path, capsys):
    run = tmp_path / "run"
    with Scripted([]) as server:
        assert main(words(checkpoint, run, server.url, "--rounds", "1")) == 0
        old = server.url
    # Nobody is there: no checkpoint is touched, and the code says so.
    assert main(["resume", str(run), "--rounds", "3"]) == 69
    file = run / "config.yaml"
    with served(redness) as url, served("colourfulness") as other:
        text = file.read_text()
        file.write_text(text.replace(old, other))
        assert main(["resume", str(run), "--rounds", "3"]) == 2
        assert "the server's reward redness (1) -> colourfulness" in capsys.readouterr().err
        file.write_text(text.replace(old, url).replace("format: safetensors", "format: png"))
        assert main(["resume", str(run), "--rounds", "3"]) == 2
        assert "remote.format safetensors -> png" in capsys.readouterr().err
        file.write_text(text.replace(old, url).replace("in_flight: 4", "in_flight: 1"))
        assert main(["resume", str(run), "--rounds", "3"]) == 0
    rounds = lambda run: [record for record in metrics(run) if "round" in record]  # noqa: E731
    assert rounds(run) == rounds(whole)


def test_the_token_is_written_nowhere(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TASTEMAKER_REWARD_TOKEN", "s3cret-token")
    echo = raw(b'{"detail": "Bearer s3cret-token?"}', 500)
    with Scripted(lambda n: echo if n >= ROUND_2 else good) as server:
        assert main(words(checkpoint, tmp_path / "run", server.url)) == 69
        assert "s3cret-token" in str(server.seen)
    out, err = capsys.readouterr()
    assert "Bearer ***?" in err
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert "s3cret" not in out + err
    assert b"s3cret" not in written
    assert b"TASTEMAKER_REWARD_TOKEN" in written


def test_a_signal_does_not_wait_for_the_server(checkpoint, tmp_path):
    """SIGTERM while a server has been silent for long: a queue does not wait for the run's patience to end."""
    run = tmp_path / "run"
    with Scripted(lambda n: slow(60) if n >= ROUND_2 - 1 else good) as server:
        arguments = words(checkpoint, run, server.url, "remote.timeout=60", "remote.wait=300", "sampling.samples=80")
        child = Child(exit_with_main, *arguments, log=tmp_path / "log")
        deadline = time.monotonic() + 240
        while len(server.asked) < ROUND_2 and time.monotonic() < deadline:
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        began = time.monotonic()
        said = finish(child, 75)
        assert time.monotonic() - began < 40
    assert "stopped by SIGTERM" in said


def test_metrics_are_what_the_server_said(whole):
    """The only numbers of the rewards in metrics.jsonl are of good answers: redness has none below 1."""
    for line in (whole / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record.get("reward/min", record.get("eval/reward/mean")) >= 1
