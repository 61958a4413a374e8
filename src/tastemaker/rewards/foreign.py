"""Calling code that others wrote: what it raises becomes one sentence, what it changes in the process is put back."""

from __future__ import annotations

import locale
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, TypeVar

from tastemaker.errors import RewardError

T = TypeVar("T")

NO_ARGUMENTS = "--rewards-have-no-command-line-arguments"
"""What foreign code finds in sys.argv, so that it does not take tastemaker's arguments for its own. A parser that must
know every argument (argparse's `parse_args`) refuses it; one that looks for its own (`parse_known_args`) finds none."""
LONGEST = 500
"""Characters of an error's text that are shown."""


def call(function: Callable[[], T], what: str) -> T:
    """What the function gives. Raises RewardError, which begins with `what`, where it raises anything or exits.

    A RewardError of its own is passed on, and so is KeyboardInterrupt: Ctrl-C ends a run wherever it comes.
    """
    try:
        with undisturbed():
            return function()
    except (RewardError, KeyboardInterrupt):
        raise
    except SystemExit as stop:
        code = "" if stop.code is None else one_line(repr(stop.code), LONGEST)
        hint = ""
        if isinstance(stop.code, int) and stop.code == 2:  # argparse's
            hint = "; if it reads the command line, let it do so only where it is run as a program"
        raise RewardError(
            f"{what} called sys.exit({code}), which would end the program: raise an exception with the reason "
            f"instead{hint}"
        ) from stop
    except BaseException as error:
        raise RewardError(f"{what} raised {described(error)}") from error


def described(error: BaseException) -> str:
    """An error's type and text in one line that is not too long, also where its text cannot be had."""
    try:
        text = str(error)
    except Exception as another:
        text = f"(its text cannot be shown: {type(another).__name__})"
    return f"{type(error).__name__}: {one_line(text, LONGEST)}".removesuffix(": ")


def one_line(text: str, longest: int) -> str:
    """The text without line breaks and what cannot be printed (half surrogates, control codes), and cut off."""
    first = text[: 10 * longest]  # a text may be of any length
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in first).split())
    return line if len(line) <= longest else line[: longest - 3] + "..."


# ---------------------------------------------------------------- what foreign code may change


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside it foreign code runs. Afterwards those settings of the process are as before that a run depends on.

    Working directory, signal handlers, standard output and error, locale, warnings made errors, numpy's errors, and
    torch's: default dtype and device, threads, determinism, precision of matrix products, gradient and inference mode.
    Not random generators, since nothing in a run draws from the global ones, and not logging.
    """
    import torch

    # Gradient mode, inference mode and default device are each thread's own, the others the process'.
    device, inference, gradient = torch.get_default_device(), torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    try:
        # Entering inference mode, or leaving it, sets the gradient mode too.
        with _PROCESS.kept(), torch.inference_mode(inference), torch.set_grad_enabled(gradient):
            yield
    finally:
        if torch.get_default_device() != device:
            torch.set_default_device(None if device == torch.device("cpu") else device)


class _Process:
    """Settings of the whole process, taken when the first of several threads enters and put back by the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[Callable[[], None]] = []

    @contextmanager
    def kept(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                for keep in _KEPT:
                    with suppress(Exception):  # what cannot be read cannot be put back
                        self._before.append(keep())
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    while self._before:
                        with suppress(Exception):
                            self._before.pop()()


def _arguments() -> Callable[[], None]:
    before = sys.argv
    sys.argv = [*before[:1], NO_ARGUMENTS]

    def put_back() -> None:
        sys.argv = before

    return put_back


def _folder() -> Callable[[], None]:
    before = os.getcwd()

    def put_back() -> None:
        try:
            moved = os.getcwd() != before
        except OSError:
            moved = True
        if moved:
            os.chdir(before)

    return put_back


def _streams() -> Callable[[], None]:
    before = sys.stdout, sys.stderr

    def put_back() -> None:
        sys.stdout, sys.stderr = (_open(stream, number) for number, stream in enumerate(before, 1))

    return put_back


def _open(stream: TextIO, number: int) -> TextIO:
    """The stream, or where it was closed another to the same file."""
    if not getattr(stream, "closed", False):  # programs without a console have none
        return stream
    try:
        return os.fdopen(os.dup(number), "w", buffering=1, encoding=stream.encoding, errors="backslashreplace")
    except OSError:
        return open(os.devnull, "w", encoding="utf-8")


def _signals() -> Callable[[], None]:
    if threading.current_thread() is not threading.main_thread():  # no other thread can set them
        return lambda: None
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def put_back() -> None:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    return put_back


def _locale() -> Callable[[], None]:
    before = locale.setlocale(locale.LC_ALL)

    def put_back() -> None:
        if locale.setlocale(locale.LC_ALL) != before:
            locale.setlocale(locale.LC_ALL, before)

    return put_back


def _warnings() -> Callable[[], None]:
    """Those that hide or show warnings stay: libraries that are imported for the first time set such."""
    before = list(warnings.filters)

    def put_back() -> None:
        if any(entry[0] == "error" and entry not in before for entry in warnings.filters):
            warnings.filters[:] = before  # type: ignore[index]
            with warnings.catch_warnings():  # makes Python forget which filter it chose for whom
                pass

    return put_back


def _numpy() -> Callable[[], None]:
    import numpy as np

    before = np.geterr()

    def put_back() -> None:
        if np.geterr() != before:
            np.seterr(**before)

    return put_back


def _torch() -> Callable[[], None]:
    import torch
    from torch.backends import cudnn

    settings: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        *(
            (lambda name=name: getattr(cudnn, name), lambda value, name=name: setattr(cudnn, name, value))
            for name in ("benchmark", "deterministic", "enabled")
        ),
    ]
    before = [read() for read, _ in settings]

    def put_back() -> None:
        for (read, write), value in zip(settings, before, strict=True):
            if read() != value:
                write(value)

    return put_back


_KEPT = (_arguments, _folder, _streams, _signals, _locale, _warnings, _numpy, _torch)
_PROCESS = _Process()
