"""Checkpoints: what is written comes back, what is damaged never does, and a failing disk loses nothing."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tastemaker.config.schema import Checkpoints
from tastemaker.errors import CheckpointError
from tastemaker.runs import atomic, checkpoint
from tastemaker.runs.checkpoint import State, Training
from tastemaker.runs.manifest import NAME, CorruptCheckpoint, verify_manifest

FACTS = {"config.optimizer.lr": 0.1, "processes": 1}


def training(seed: int = 0) -> Training:
    torch.manual_seed(seed)
    weights = {"a": nn.Parameter(torch.randn(3, 2)), "b": nn.Parameter(torch.randn(4))}
    return Training(weights, torch.optim.AdamW(weights.values(), lr=0.1))


def step(made: Training) -> None:
    for parameter in made.weights.values():
        parameter.grad = torch.randn_like(parameter)
    made.optimizer.step()


def write(folder, rounds, keep: Checkpoints | None = None) -> Training:
    made = training()
    for number in rounds:
        step(made)
        state = State(number, 10 * number, -1.25, 0.5, {"a cat": [0.1, 0.2 + number]})
        checkpoint.save(folder, state, made, FACTS, keep or Checkpoints(keep=3))
    return made


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def same(one: Training, two: Training) -> bool:
    slots = [torch.optim.Optimizer.state_dict(t.optimizer)["state"] for t in (one, two)]
    return all(one.weights[k].equal(two.weights[k]) for k in one.weights) and all(
        slots[0][i][name].equal(slots[1][i][name]) for i in slots[0] for name in slots[0][i]
    )


def test_what_was_saved_comes_back_and_training_goes_on_the_same(tmp_path):
    one, two = write(tmp_path, [1, 2]), training(seed=5)
    state, facts, notes = checkpoint.load(tmp_path, two)
    assert state == State(2, 20, -1.25, 0.5, {"a cat": [0.1, 2.2]})
    assert facts == FACTS
    assert notes == []
    assert same(one, two)
    for made in (one, two):
        torch.manual_seed(9)
        step(made)
    assert same(one, two)


def test_the_loss_scale_of_float16_comes_back(tmp_path):
    made = training()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    one = Training(made.weights, made.optimizer, scaler)
    scaler.scale(torch.ones(()))  # a scaler has no state before its first use
    checkpoint.save(tmp_path, State(), one, FACTS, Checkpoints())
    other = torch.amp.GradScaler("cpu", init_scale=2.0)
    other.scale(torch.ones(()))
    checkpoint.load(tmp_path, Training(made.weights, made.optimizer, other))
    assert other.get_scale() == 1024.0
    with pytest.raises(CheckpointError, match="another precision"):
        checkpoint.load(tmp_path, made)


def test_the_newest_and_every_nth_are_kept(tmp_path):
    write(tmp_path, range(1, 11), Checkpoints(keep=2, keep_every=4))
    assert names(tmp_path) == ["step-000004", "step-000008", "step-000009", "step-000010"]


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path):
    write(tmp_path, [1, 2, 3])
    (tmp_path / "checkpoints/step-000003/optimizer.safetensors").unlink()
    with (tmp_path / "checkpoints/step-000002/state.json").open("a") as file:
        file.write(" ")
    state, _, notes = checkpoint.load(tmp_path, training())
    assert state.round == 1
    assert "step-000003 is damaged" in notes[0]
    assert "optimizer.safetensors cannot be read: No such file" in notes[0]
    assert "step-000002 is damaged" in notes[1]
    assert "state.json is not what was written" in notes[1]


def test_without_a_whole_checkpoint_nothing_is_loaded(tmp_path):
    write(tmp_path, [1])
    (tmp_path / "checkpoints/step-000001" / NAME).unlink()
    made = training(seed=3)
    with pytest.raises(CheckpointError, match=r"no checkpoint to go on from .*manifest.json cannot be read"):
        checkpoint.load(tmp_path, made)
    assert same(made, training(seed=3))
    with pytest.raises(CheckpointError, match="there is none"):
        checkpoint.load(tmp_path / "nowhere", made)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": torch.zeros(3, 2), "c": torch.zeros(4)}, "other weights than this run trains"),
        ({"a": torch.zeros(3, 2), "b": torch.zeros(5)}, r"b has the shape \[4\], but this run's has \[5\]"),
    ],
)
def test_another_models_checkpoint_is_refused(tmp_path, weights, message):
    write(tmp_path, [1])
    parameters = {name: nn.Parameter(value) for name, value in weights.items()}
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path, Training(parameters, torch.optim.AdamW(parameters.values())))


def test_optimizer_state_for_some_parameters_only_is_refused(tmp_path):
    made = training()
    made.weights["a"].grad = torch.ones(3, 2)  # b has no gradient, so Adam has no state for it
    made.optimizer.step()
    checkpoint.save(tmp_path, State(), made, FACTS, Checkpoints())
    with pytest.raises(CheckpointError, match="optimizer state for 1 of 2 parameters"):
        checkpoint.load(tmp_path, training())


def test_a_thousand_truncations_and_bit_flips_are_all_detected(tmp_path):
    write(tmp_path, [1, 2])
    newest = tmp_path / "checkpoints/step-000002"
    files = sorted(newest.iterdir())
    assert len(files) == 4
    rng, loaded = random.Random(0), 0
    for attempt in range(1000):
        path = files[attempt % 4]
        whole = path.read_bytes()
        if attempt % 3 == 0:
            damaged = whole[: rng.randrange(len(whole))]
        else:
            bit = rng.randrange(8 * len(whole))
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CorruptCheckpoint):
            verify_manifest(newest)
        found, _, _, notes = checkpoint.newest(tmp_path)
        loaded += found == newest
        assert len(notes) == 1
        path.write_bytes(whole)
    assert loaded == 0
    assert checkpoint.newest(tmp_path)[0] == newest  # undamaged, it would have been


def failing(function: Callable[..., Any], counter: list[int], error: int) -> Callable[..., Any]:
    """The `counter`-th call from now raises an OSError; a write puts half of the bytes on disk first."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        counter[0] -= 1
        if counter[0] == 0:
            if function.__name__ == "write":
                function(arguments[0], bytes(arguments[1][: len(arguments[1]) // 2]))
            raise OSError(error, os.strerror(error))
        return function(*arguments, **named)

    return wrapped


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("same_round", [False, True])
def test_every_operation_of_a_save_may_fail_and_a_whole_checkpoint_remains(tmp_path, monkeypatch, error, same_round):
    calls = ("write", "fsync", "replace", "open", "mkdir", "unlink", "rmdir")
    reached, failures = [], []
    for number in range(1, 200):
        folder = tmp_path / str(number)
        made = write(folder, [1, 2], Checkpoints(keep=2))
        state = State(2 if same_round else 3)
        counter = [number]
        with monkeypatch.context() as patch:
            for call in calls:
                patch.setattr(os, call, failing(getattr(os, call), counter, error))
            try:
                checkpoint.save(folder, state, made, FACTS, Checkpoints(keep=2))
            except OSError as raised:
                failures.append(raised.errno)
        loaded = training(seed=1)
        found, _, _ = checkpoint.load(folder, loaded)
        reached.append(found.round)
        assert found.round in (1, 2, 3)
        assert found.round >= 2 or same_round  # saving a round again may leave the one before it
        # The next save goes well, and takes the leftovers with it.
        checkpoint.save(folder, State(4), made, FACTS, Checkpoints(keep=2))
        assert checkpoint.load(folder, loaded)[0].round == 4
        assert not list(folder.rglob(".*"))
        if counter[0] > 0:
            break  # all of its operations went well
    assert set(failures) == {error}
    assert len(failures) > 20  # four files made, written and synced, folders, renames, the pruning
    assert set(reached) == ({1, 2} if same_round else {2, 3})


def test_appending_half_a_line_and_failing_leaves_the_lines_before(tmp_path, monkeypatch):
    from tastemaker.runs.metrics import append_metrics, read_metrics, truncate_metrics

    path = tmp_path / "metrics.jsonl"
    append_metrics(path, {"round": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(os.write, [1], errno.ENOSPC))
        with pytest.raises(OSError, match="No space left"):
            append_metrics(path, {"round": 2})
    assert read_metrics(path) == [{"round": 1}]
    truncate_metrics(path, 1)
    assert json.loads(path.read_text()) == {"round": 1}


def test_writing_goes_on_after_a_short_write(tmp_path, monkeypatch):
    write_some = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write_some(handle, data[:3]))
    atomic.replace_atomic(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_checkpoint_of_an_earlier_format_is_refused_with_both_formats(tmp_path):
    write(tmp_path, [1])
    manifest = tmp_path / "checkpoints/step-000001/manifest.json"
    old = manifest.read_text().replace('"format": 2', '"format": 1').replace('"fingerprint"', '"facts"')
    manifest.write_text(old)
    with pytest.raises(CheckpointError, match="is of format 1, and this version reads format 2"):
        checkpoint.load(tmp_path, training())
