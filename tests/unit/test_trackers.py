"""Trackers: refused before anything is computed, fed at the right steps, and never the end of a run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
import struct
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import PartialState
from PIL import Image

from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError, RewardError
from tastemaker.training import trackers
from tastemaker.training.isolation import isolated
from tastemaker.training.trackers import KINDS, Images, Kind, Table, Trackers, check_trackers, tracking

IMAGES = Images([Image.new("RGB", (8, 8))] * 2, ["a cat (0.1)", "a dog (0.2)"], columns=1)
TABLE = Table(
    ["prompt", "image", "reward", "judged correct"], [("a | cat", 0, 0.123456, True), ("a dog", 1, 2.0, None)]
)


class Recording:
    """A tracker's own library: writes down what it is told."""

    def __init__(self, identity: str, at: int = 0) -> None:
        self.identity, self.at, self.said, self.fails = identity, at, [], False

    def log(self, values: dict[str, Any], step: int) -> None:
        if self.fails:
            raise OSError(28, "No space left on device")
        self.said.append((step, values))


def recording(made: list[Recording], *, local: bool = False, started: bool = False, at: int = 0) -> Kind:
    def start(config: Config, folder: Path, saved: str | None, first: int) -> Recording:
        made.append(Recording(saved or f"new-{first}", at))
        return made[-1]

    return Kind(
        start, lambda one, name, shown, step: one.log({name: shown.captions}, step),
        lambda one, name, table, step: one.log({name: table}, step),
        finish=lambda one, code: one.said.append(("end", code)), identity=lambda one: one.identity,
        first_step=lambda one: one.at, started=lambda: started, local=local,
    )  # fmt: skip


def config(*names: str) -> Config:
    return Config(trackers=names)


@pytest.fixture
def made(monkeypatch):
    """Two trackers in the place of the real ones, `near` in the run's folder and `far` elsewhere; those started."""
    found: list[Recording] = []
    monkeypatch.setattr(trackers, "KINDS", {"near": recording(found, local=True), "far": recording(found)})
    return found


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("wandbb",), "trackers has 'wandbb'; did you mean 'wandb'?"),
        (("tensorboard", "Tensor-Board"), "trackers has 'Tensor-Board'; did you mean 'tensorboard'?"),
        (("mlflow",), "trackers has 'mlflow'; known: tensorboard, trackio, wandb"),
        ("wandb", "trackers is 'wandb', expected a list such as ('wandb',)"),
    ],
)
def test_unknown_trackers(names, message):
    with pytest.raises(ConfigError) as refusal:
        check_trackers(names, main=True)
    assert str(refusal.value) == message


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("folder", [False, True])
def test_trackers_that_are_not_installed(monkeypatch, name, folder):
    # W&B leaves a folder `wandb` where it was used, which Python takes for a package without files.
    monkeypatch.setattr(trackers, "find_spec", lambda name: SimpleNamespace(origin=None) if folder else None)
    with pytest.raises(ConfigError, match=f"trackers has '{name}', but {name} is not installed: `pip install {name}`"):
        check_trackers([name], main=True)


def test_every_tracker_starts_once_and_a_run_is_found_again(made, tmp_path):
    with tracking(config("far", "near", "far"), tmp_path, first=0, main=True) as found:
        assert [one.identity for one in made] == ["new-0"]  # the folder of the run may not be there yet
        found.start_local(config("far", "near", "far"), tmp_path, 0)
        assert list(found.active) == ["far", "near"]
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"far": "new-0"}
    with tracking(config("far"), tmp_path, first=3, main=True) as found:
        found.start_local(config("far"), tmp_path, 3)
    assert [one.identity for one in made] == ["new-0", "new-0", "new-0"]
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"far": "new-0"}


@pytest.mark.parametrize("content", ["{", "[]", '{"far": 3}', b"\xff"])
def test_a_damaged_note_starts_another_run(made, tmp_path, content):
    (tmp_path / "trackers.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with tracking(config("far"), tmp_path, first=2, main=True):
        assert made[0].identity == "new-2"


def test_other_processes_have_none(made, tmp_path):
    with tracking(config("far", "near"), tmp_path, first=0, main=False) as found:
        found.log({"reward/mean": 1.0}, 1)
    assert not made


def test_metrics_and_images_have_the_step_of_their_round(made, tmp_path):
    with tracking(config("far"), tmp_path, first=0, main=True) as found:
        found.log({"eval/reward/mean": 0.5}, 0)
        found.log_images("eval/images", IMAGES, 0)
        found.log_table("eval/table", TABLE, 0)
        found.log({"reward/mean": 0.25}, 1)
    assert made[0].said == [
        (0, {"eval/reward/mean": 0.5}), (0, {"eval/images": IMAGES.captions}), (0, {"eval/table": TABLE}),
        (1, {"reward/mean": 0.25}), ("end", 0),
    ]  # fmt: skip


def test_what_comes_late_goes_to_the_first_step_that_is_taken():
    one = Recording("run", at=4)
    found = Trackers({"wandb": one})
    trackers_kind = replace(KINDS["wandb"], first_step=lambda one: one.at)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, "wandb", trackers_kind)
        found.log({"eval/reward/mean": 0.5}, 3, late=True)
        found.log({"reward/mean": 0.5}, 3)
        found.log({"reward/mean": 0.5}, 5, late=True)
    assert [step for step, _ in one.said] == [4, 3, 5]


def test_one_that_fails_is_left_out_and_the_others_go_on(made, tmp_path):
    said: list[str] = []
    with tracking(config("far", "near"), tmp_path, first=0, main=True, notify=said.append) as found:
        found.start_local(config("far", "near"), tmp_path, 0)
        made[0].fails = True
        for step in range(3):
            found.log({"reward/mean": 1.0}, step)
    reason = "[Errno 28] No space left on device"
    assert said == [f"the tracker far failed (metrics: {reason}) and gets nothing more of this run"]
    assert [step for step, _ in made[1].said] == [0, 1, 2, "end"]


def test_one_that_cannot_start_is_refused(monkeypatch, tmp_path):
    def start(*_: object) -> None:
        raise RuntimeError("no\nnetwork.")

    monkeypatch.setitem(KINDS, "trackio", replace(KINDS["trackio"], start=start))
    with pytest.raises(ConfigError, match=r"^the tracker trackio cannot be used \(no network\): "):
        tracking(config("trackio"), tmp_path, first=0, main=True).__enter__()


@pytest.mark.parametrize(("error", "code"), [(RewardError("x"), 2), (KeyboardInterrupt(), 1)])
def test_a_run_that_fails_is_shown_as_failed(made, tmp_path, error, code):
    def fails() -> None:
        with tracking(config("far"), tmp_path, first=0, main=True):
            raise error

    with pytest.raises(type(error)):
        fails()
    assert made[0].said == [("end", code)]


def test_a_run_of_the_callers_is_counted_on_and_not_ended(monkeypatch, tmp_path):
    found: list[Recording] = []
    monkeypatch.setattr(trackers, "KINDS", {"far": recording(found, started=True, at=7)})
    with tracking(config("far"), tmp_path, first=0, main=True) as active:
        active.start_local(config("far"), tmp_path, 0)
        active.log({"reward/mean": 1.0}, 2)
    assert [step for step, _ in found[0].said] == [9]
    assert not (tmp_path / "trackers.json").exists()


# ---------------------------------------------------------------- Weights & Biases


class FakeRun(Recording):
    """What W&B's `init` returns, as far as accelerate and we use it."""

    step, id = 0, "made-id"

    def finish(self, exit_code: int) -> None:
        self.said.append(("end", exit_code))


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_what_wandb_is_told(monkeypatch, tmp_path, resumed, named):
    told: dict[str, Any] = {}
    run = FakeRun("")
    fake = SimpleNamespace(
        run=None, init=lambda **given: told.update(given) or run, Image=lambda image, caption: caption
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.setenv(name, "given") if named else monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "a-run"
    folder.mkdir()
    if resumed:
        (folder / "trackers.json").write_text('{"wandb": "abcd1234"}', encoding="utf-8")
    with isolated(), ExitStack() as stack:
        PartialState(cpu=True)  # accelerate's trackers ask it which process this is
        found = stack.enter_context(tracking(config("wandb"), folder, first=3 if resumed else 0, main=True))
        found.start_local(config("wandb"), folder, 3)
        found.log({"reward/mean": 0.5}, 3)
        found.log_images("eval/images", IMAGES, 3)
    settings = told.pop("config")
    assert (settings["rounds"], settings["algorithm"]["name"]) == (100, "ddpo")
    expected = {"project": "given"} if named else {"project": "tastemaker", "name": "a-run"}
    assert told == expected | ({"id": "abcd1234", "resume": "allow"} if resumed else {})
    assert run.said == [(3, {"reward/mean": 0.5}), (3, {"eval/images": IMAGES.captions}), ("end", 0)]
    assert json.loads((folder / "trackers.json").read_text())["wandb"] == "made-id"


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    found = pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_NAME", "WANDB_PROJECT", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_SILENT", "WANDB_DISABLE_GIT", "WANDB_DISABLE_CODE", "WANDB_X_DISABLE_STATS"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    yield found
    found.teardown()


@pytest.mark.parametrize(
    ("mode", "key", "reason"),
    [
        ("online", "", "No API key configured"),
        ("online", "short", "API key"),
        ("ofline", "", "'ofline'"),
    ],
)
def test_wandb_without_an_account(wandb, monkeypatch, mode, key, reason):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.raises(ConfigError, match=r"^the tracker wandb cannot be used \(") as refusal:
        check_trackers(["wandb"], main=True)
    assert reason in str(refusal.value)
    assert str(refusal.value).endswith("or set WANDB_MODE=offline to keep the data here")
    check_trackers(["wandb"], main=False)


@pytest.mark.parametrize("mode", ["offline", "disabled", "dryrun"])
def test_wandb_that_sends_nothing_needs_no_account(wandb, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    check_trackers(["wandb"], main=True)


@pytest.mark.slow
def test_wandb_gets_rounds_as_steps_and_a_resumed_run_has_its_identity(wandb, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "a-run"
    run.mkdir()
    (run / "trackers.json").write_text('{"wandb": "abcd1234"}', encoding="utf-8")
    with isolated(), ExitStack() as stack:
        PartialState(cpu=True)  # accelerate's trackers ask it which process this is
        found = stack.enter_context(tracking(config("wandb"), run, first=3, main=True))
        found.start_local(config("wandb"), run, 3)
        found.log({"reward/mean": 0.5}, 3)
        found.log({"eval/reward/mean": 0.25}, 3)
        found.log_images("eval/images", IMAGES, 3)
        found.log_table("eval/table", TABLE, 3)
        found.log({"reward/mean": 0.75}, 4)
    assert wandb.run is None
    wandb.teardown()  # its own process writes the file, and has not always done so when the run has ended
    (file,) = tmp_path.glob("wandb/offline-run-*/run-abcd1234.wandb")
    records = list(read_wandb(file))
    (started,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (started.run_id, started.display_name, started.project) == ("abcd1234", "a-run", "tastemaker")
    settings = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert (settings["rounds"], settings["algorithm"]["name"]) == (100, "ddpo")
    steps = {
        record.history.step.num: {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
        for record in records
        if (items := record.history.item)
    }
    assert sorted(steps) == [3, 4]
    assert (steps[3]["reward/mean"], steps[3]["eval/reward/mean"], steps[4]["reward/mean"]) == (0.5, 0.25, 0.75)
    assert steps[3]["eval/images/captions"] == IMAGES.captions
    (written,) = tmp_path.glob("wandb/offline-run-*/files/media/table/eval/table_3_*.table.json")
    content = json.loads(written.read_text())
    assert (content["columns"], content["data"]) == (TABLE.columns, [list(row) for row in TABLE.rows])


def read_wandb(file: Path):
    """The records of a .wandb file, which is a LevelDB log: blocks of 32 KiB, in them pieces of records."""
    from wandb.proto import wandb_internal_pb2

    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        rest = 2**15 - place % 2**15
        if rest < 7:
            place += rest
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def test_tables_in_tensorboard_are_text(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with isolated():
        PartialState(cpu=True)
        with tracking(config("tensorboard"), tmp_path, first=0, main=True) as found:
            found.start_local(config("tensorboard"), tmp_path, 0)
            found.log_table("eval/table", TABLE, 2)
    events = EventAccumulator(str(next(tmp_path.rglob("events.*")).parent)).Reload()
    (event,) = events.Tensors("eval/table/text_summary")
    assert event.step == 2
    assert event.tensor_proto.string_val[0].decode() == (
        "| prompt | image | reward | judged correct |\n| --- | --- | --- | --- |\n"
        "| a \\| cat | 0 | 0.1235 | True |\n| a dog | 1 | 2 | None |"
    )


# ---------------------------------------------------------------- trackio

TRACKIO = """
from pathlib import Path

from accelerate import PartialState
from tests.unit.test_trackers import IMAGES, TABLE, config
from tastemaker.training.trackers import check_trackers, tracking

PartialState(cpu=True)
check_trackers(["trackio"], main=True)
for first in (0, 3):
    with tracking(config("trackio"), Path("a-run"), first=first, main=True) as found:
        found.start_local(config("trackio"), Path("a-run"), first)
        found.log({"reward/mean": 0.5 + first}, first)
        found.log_images("eval/images", IMAGES, first)
        found.log_table("eval/table", TABLE, first)
"""


@pytest.mark.slow
def test_trackio_gets_metrics_images_and_tables_and_a_resumed_run_goes_on_in_the_same_one(tmp_path):
    """In a process of its own: trackio reads the name of its folder when it is imported."""
    pytest.importorskip("trackio")
    (tmp_path / "a-run").mkdir()
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "kept"), "PYTHONPATH": f"{root / 'src'}:{root}"}
    environment.pop("TRACKIO_SPACE_ID", None)
    done = subprocess.run(
        [sys.executable, "-c", TRACKIO], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    name = json.loads((tmp_path / "a-run/trackers.json").read_text())["trackio"]
    assert name.startswith("a-run-")
    with contextlib.closing(sqlite3.connect(tmp_path / "kept/tastemaker.db")) as kept:
        lines = [(run, step, json.loads(line)) for run, step, line in kept.execute(
            "select run_name, step, metrics from metrics order by id"
        )]  # fmt: skip
    assert {run for run, _, _ in lines} == {name}
    assert [step for _, step, _ in lines] == [0, 0, 0, 3, 3, 3]
    metrics, images, table = (line for _, _, line in lines[3:])
    assert metrics == {"reward/mean": 3.5}
    file = tmp_path / "kept/media" / images["eval/images"]["file_path"]
    with Image.open(file) as image:
        assert image.size == IMAGES.sheet().size
    assert [list(row.values()) for row in table["eval/table"]["_value"]] == [list(row) for row in TABLE.rows]
