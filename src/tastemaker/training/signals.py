"""Signals that ask a run to end, and how its processes agree on when."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from accelerate import Accelerator

from tastemaker.errors import TastemakerError
from tastemaker.training.progress import Display

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
PREEMPTED = 75
"""Exit code after SIGTERM, sysexits' EX_TEMPFAIL: not an error, start it again. 143 would be a death without saving."""


class Interrupted(TastemakerError):
    """The run was asked to stop by Ctrl-C and has saved itself."""

    exit_code = INTERRUPTED


class Preempted(TastemakerError):
    """The run was asked to stop by SIGTERM and has saved itself."""

    exit_code = PREEMPTED


class StopNow(Exception):
    """SIGTERM came while images were sampled: the weights are those of the round before, and can be saved."""


@dataclass
class Stop:
    """The signal that asked this process to end, if one did."""

    accelerator: Accelerator
    asked: int = 0

    def agreed(self) -> int:
        """The signal that any process was sent, 0 for none; the same answer on all of them, which all must ask."""
        if self.accelerator.num_processes == 1:
            return self.asked
        mine = torch.tensor([self.asked], device=self.accelerator.device)
        return int(self.accelerator.gather(mine).max().item())  # type: ignore[union-attr]

    def check(self) -> None:
        """Raises StopNow after SIGTERM. To be asked where nothing of the round has been settled yet."""
        if self.agreed() == signal.SIGTERM:
            raise StopNow


@contextmanager
def listening(stop: Stop, display: Display) -> Iterator[None]:
    """Ctrl-C lets the round end, a second one stops at once; SIGTERM stops as soon as nothing is lost by it."""

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and stop.asked:
            raise KeyboardInterrupt
        stop.asked = max(stop.asked, number)
        after = "after this round, which will be saved (Ctrl-C again to stop at once)"
        display.log("stopping " + (after if number == signal.SIGINT else "as soon as the run can be saved"))

    with handled(handle):
        yield


@contextmanager
def handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside it Ctrl-C and SIGTERM go to `handle`.

    In another thread than the main one, which alone gets signals, they stay with whoever listens to them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A handler that is not Python's, as of a program that embeds it, could not be put back.
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not None]
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
