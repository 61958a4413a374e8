"""Heartbeats: who is silent and who is not, and what processes of several machines must have in common."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed

from tastemaker.errors import ConfigError
from tastemaker.training import distributed, heartbeat, setup
from tastemaker.training.heartbeat import LEFT, Heard, lost_connection, silent_text, watch


def test_a_process_is_silent_when_its_heartbeat_has_not_changed_for_long_enough():
    heard = Heard(own=0)
    assert heard.silent(1000, 40) == {}  # none has begun
    heard.hear([b"a 1", b"b 1", b"c 1", b"d 1"], 100)
    heard.hear([b"a 1", b"b 2", b"c 1", LEFT], 110)
    assert heard.silent(139.9, 40) == {}
    # The third was last heard at 100, the second at 110; the fourth has left, and the first is this process.
    assert heard.silent(140, 40) == {2: "c"}
    assert heard.silent(150, 40) == {1: "b", 2: "c"}
    heard.hear([b"a 1", b"b 2", b"c 2", LEFT], 151)
    assert heard.silent(152, 40) == {1: "b"}


class Memory:
    """A store in this process, in which another one's heart beats `beats` times, and which then fails with `error`."""

    def __init__(self, beats: int, error: Exception | None = None) -> None:
        self.values: dict[str, bytes] = {}
        self.beats, self.error, self.asked = beats, error, 0

    def set(self, key: str, value: str, /) -> None:
        self.values[key] = value.encode()

    def multi_get(self, keys: list[str], /) -> list[bytes]:
        self.asked += 1
        if self.error is not None and self.asked > self.beats:
            raise self.error
        return [self.values[keys[0]], f"there {min(self.asked, self.beats)}".encode()]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.005)
    monkeypatch.setattr(heartbeat, "PATIENCE", 0.05)


@pytest.mark.parametrize(
    ("error", "asked_again"),
    [
        (None, True),
        (torch.distributed.DistStoreError("no answer"), True),
        (torch.distributed.DistNetworkError("gone"), False),
    ],
)
def test_watching_ends_with_who_is_silent(error, asked_again):
    store = Memory(3, error)
    assert watch(store, 0, 2, threading.Event()) == {1: "there"}
    assert (store.asked > 4) == asked_again


def test_watching_ends_with_the_run_and_says_so():
    store, ended = Memory(1000), threading.Event()
    threading.Timer(0.1, ended.set).start()
    assert watch(store, 0, 2, ended) == {}
    assert store.values == {"tastemaker/heartbeat/0": LEFT}
    assert store.asked > 2


def test_the_sentence():
    assert silent_text({1: "a", 3: "b"}, "go on").startswith("processes 1 on a, 3 on b of this run gave no sign")
    assert silent_text({1: "a"}, "go on").endswith("; go on")


def test_which_errors_are_lost_connections():
    assert lost_connection(torch.distributed.DistBackendError("NCCL error: remote process exited"))
    assert lost_connection(RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer"))
    assert not lost_connection(torch.OutOfMemoryError("CUDA out of memory"))


def test_processes_with_other_settings_versions_or_data_are_refused(monkeypatch):
    first = {"config": {"seed": 1}, "versions": {"torch": "2.13.0"}, "device": "A100", "threads": 4}
    second = {"config": {"seed": 2}, "versions": {"torch": "2.13.0"}, "device": "H100", "threads": 8}

    def gather(own: list[Any]) -> list[Any]:
        assert "device" not in own[0][1]
        return [*own, ("b", {name: second[name] for name in own[0][1]})]

    monkeypatch.setattr(distributed, "gather_object", gather)
    monkeypatch.setattr(distributed.socket, "gethostname", lambda: "a")
    two: Any = SimpleNamespace(num_processes=2)
    with pytest.raises(ConfigError, match=r"process 1 on b does not have what process 0 on a has \(seed 1 -> 2\)"):
        distributed.require_same(two, first)
    distributed.require_same(two, first | {"config": {"seed": 2}})
    alone: Any = SimpleNamespace(num_processes=1)
    distributed.require_same(alone, first)


def test_processes_wait_for_each_other_longer_than_pytorch_s_own_timeouts(monkeypatch, tmp_path):
    given: dict[str, Any] = {}

    def made(**named: Any) -> Any:
        given.update(named)
        raise RuntimeError("stop here")

    monkeypatch.setattr(setup, "Accelerator", made)
    with pytest.raises(ConfigError, match="stop here"):
        setup._accelerator(setup.Config(), tmp_path)
    assert given["kwargs_handlers"][0].timeout == heartbeat.COLLECTIVE_TIMEOUT
