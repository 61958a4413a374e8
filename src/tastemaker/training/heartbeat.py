"""Heartbeats of a run's processes: one that dies, with its machine or alone, ends the others within a minute.

A collective operation waits for a process that has died until its timeout, unless the connection to it was closed. That
timeout (COLLECTIVE_TIMEOUT) is long, since processes also wait for an evaluation, or for people's answers.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

import torch.distributed
from accelerate import Accelerator

from tastemaker.errors import ProcessLost
from tastemaker.printing import Output

INTERVAL = 2.0
"""Seconds between a process' heartbeats."""
PATIENCE = 40.0
"""Seconds without a heartbeat after which a process counts as dead."""
STORE_TIMEOUT = 5.0
"""Seconds for which the store is waited for at each heartbeat."""
COLLECTIVE_TIMEOUT = timedelta(hours=12)
"""How long processes wait for one that lives. PyTorch's own values, 10 minutes with NCCL and 30 with gloo, are shorter
than some evaluations, which one process does while the others wait."""

LEFT = b"left"
"""In the place of the heartbeat of a process whose part in the run has ended."""


class Store(Protocol):
    """What is used of `torch.distributed.TCPStore`."""

    def set(self, key: str, value: str, /) -> None: ...
    def multi_get(self, keys: list[str], /) -> list[bytes]: ...


@dataclass
class Heard:
    """When each process was last heard of."""

    own: int
    """This process' rank, which is not judged."""
    beats: list[bytes] = field(default_factory=list)
    """By rank; empty until all have begun."""
    seconds: list[float] = field(default_factory=list)
    """When they last changed, by this process' clock."""

    def hear(self, beats: Sequence[bytes], now: float) -> None:
        """Takes the newest heartbeats of all processes, by rank."""
        if not self.beats:
            self.beats, self.seconds = list(beats), [now] * len(beats)
            return
        for rank, beat in enumerate(beats):
            if beat != self.beats[rank]:
                self.beats[rank], self.seconds[rank] = beat, now

    def silent(self, now: float, patience: float) -> dict[int, str]:
        """The host of each process that was not heard of for `patience` seconds, by its rank.

        None before all have begun, since a process may load its model for long, and none that has left.
        """
        return {
            rank: beat.decode().partition(" ")[0]
            for rank, beat in enumerate(self.beats)
            if rank != self.own and beat != LEFT and now - self.seconds[rank] >= patience
        }


@contextmanager
def watched_processes(accelerator: Accelerator, how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Inside it a process of the run that dies ends this one with ProcessLost, whose text ends with `how_to_go_on()`.

    Where the connection to it was closed, the error of the collective operation becomes a ProcessLost. Where it was not
    (the power or the network failed, or the process was stopped) heartbeats are missing, and this process ends at once
    with the same text and exit code, since its main thread cannot be woken. All processes must enter it. Processes that
    share no TCP store, which no launcher named in $MASTER_ADDR, have no heartbeats.
    """
    if accelerator.num_processes == 1:
        yield
        return
    with _heartbeats(accelerator.process_index, accelerator.num_processes, how_to_go_on):
        try:
            yield
        except RuntimeError as error:
            if not lost_connection(error):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise ProcessLost(
                f"another process of this run has ended, or cannot be reached any more ({reason}): see the output of "
                f"the other processes; {how_to_go_on()}"
            ) from error


def lost_connection(error: RuntimeError) -> bool:
    """Whether a collective operation failed because of another process. gloo raises plain RuntimeErrors."""
    return isinstance(error, torch.distributed.DistError) or "gloo/" in str(error)


@contextmanager
def _heartbeats(rank: int, count: int, how_to_go_on: Callable[[], str]) -> Iterator[None]:
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not host or not port:
        yield
        return
    # A connection of its own: the process group's is not to be used by two threads.
    store = torch.distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        host, int(port), is_master=False, timeout=timedelta(seconds=STORE_TIMEOUT), wait_for_workers=False
    )
    ended = threading.Event()

    def beat() -> None:
        silent = watch(store, rank, count, ended)
        if silent:
            end_process(silent_text(silent, how_to_go_on()))

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def watch(store: Store, rank: int, count: int, ended: threading.Event) -> Mapping[int, str]:
    """Sends heartbeats until `ended`, and then that this process has left; or until others are silent.

    Returns the hosts, by rank, of those that were silent for PATIENCE seconds. A store that does not answer, or the
    connection to which is lost, is the silence of all others: it may also have ended because they have, and so may this
    process soon.
    """
    heard, keys, number, connected = Heard(rank), [_key(other) for other in range(count)], 0, True
    while not ended.wait(INTERVAL if number else 0):
        number += 1
        try:
            if connected:
                store.set(keys[rank], f"{socket.gethostname()} {number}")
                heard.hear(store.multi_get(keys), time.monotonic())
        except torch.distributed.DistNetworkError:
            connected = False  # PyTorch's client does not connect again
        except RuntimeError:
            pass  # it did not answer in time, or some processes have not begun
        if silent := heard.silent(time.monotonic(), PATIENCE):
            return silent
    if connected:
        with suppress(RuntimeError):
            store.set(keys[rank], LEFT.decode())
    return {}


def silent_text(silent: Mapping[int, str], how_to_go_on: str) -> str:
    """What a person is told about processes that are not heard of any more: `silent` has their hosts by rank."""
    which = ", ".join(f"{rank} on {host}" for rank, host in silent.items())
    return (
        f"process{'es' if len(silent) > 1 else ''} {which} of this run gave no sign of life for {PATIENCE:g} s: the "
        f"machine or the network between the machines has failed, or the process was stopped; {how_to_go_on}"
    )


def end_process(text: str) -> None:
    """Ends this process at once, as a kill would, with an error message and ProcessLost's exit code."""
    errors = Output(sys.stderr)
    errors.write(f"tastemaker: {text}\n")
    errors.flush()
    os._exit(ProcessLost.exit_code)


def _key(rank: int) -> str:
    return f"tastemaker/heartbeat/{rank}"
