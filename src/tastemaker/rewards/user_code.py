"""Calls of code that users wrote: exceptions become one sentence, and settings of the process are restored."""

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
"""The only argument in sys.argv while user code runs, so that it does not parse tastemaker's own. A parser that must
know every argument (argparse's `parse_args`) refuses it; one that looks for its own (`parse_known_args`) finds none."""
MAX_CHARACTERS = 500
"""Characters of an error's text that are shown."""


def call(function: Callable[[], T], what: str) -> T:
    """The function's result. Raises RewardError, which begins with `what`, where it raises anything or exits.

    A RewardError is passed on, and so is KeyboardInterrupt, since Ctrl-C has to end a run at any time.
    """
    try:
        with process_settings_restored():
            return function()
    except (RewardError, KeyboardInterrupt):
        raise
    except SystemExit as stop:
        code = "" if stop.code is None else one_line(repr(stop.code), MAX_CHARACTERS)
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
    """An error's type and text in one short line, also where its text cannot be computed."""
    try:
        text = str(error)
    except Exception as another:
        text = f"(its text cannot be shown: {type(another).__name__})"
    return f"{type(error).__name__}: {one_line(text, MAX_CHARACTERS)}".removesuffix(": ")


def one_line(text: str, limit: int) -> str:
    """At most `limit` characters of the text, without line breaks and unprintable characters (surrogates, controls)."""
    first = text[: 10 * limit]  # a text may be of any length
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in first).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


# ---------------------------------------------------------------- settings that user code may change


@contextmanager
def process_settings_restored() -> Iterator[None]:
    """A context for running user code. Afterwards the settings of the process that a run depends on are as before.

    Working directory, signal handlers, standard output and error, locale, warnings made errors, numpy's errors, and
    torch's: default dtype and device, threads, determinism, precision of matrix products, gradient and inference mode.
    Not random generators, since a run uses none of the global ones, and not logging.
    """
    import torch

    # Gradient mode, inference mode and default device belong to the thread, the others to the process.
    device, inference, gradient = torch.get_default_device(), torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    try:
        # Entering or leaving inference mode sets the gradient mode too.
        with _SAVED.restored(), torch.inference_mode(inference), torch.set_grad_enabled(gradient):
            yield
    finally:
        if torch.get_default_device() != device:
            torch.set_default_device(None if device == torch.device("cpu") else device)


class _SavedSettings:
    """Settings of the process: saved when the first of several threads enters, and restored by the last to leave."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[Callable[[], None]] = []

    @contextmanager
    def restored(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                for save in _SETTINGS:
                    with suppress(Exception):  # what cannot be read cannot be restored
                        self._before.append(save())
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

    def restore() -> None:
        sys.argv = before

    return restore


def _folder() -> Callable[[], None]:
    before = os.getcwd()

    def restore() -> None:
        try:
            moved = os.getcwd() != before
        except OSError:
            moved = True
        if moved:
            os.chdir(before)

    return restore


def _streams() -> Callable[[], None]:
    before = sys.stdout, sys.stderr

    def restore() -> None:
        sys.stdout, sys.stderr = (_open(stream, number) for number, stream in enumerate(before, 1))

    return restore


def _open(stream: TextIO, number: int) -> TextIO:
    """The stream, or if it was closed a new one to the same file descriptor."""
    if not getattr(stream, "closed", False):  # programs without a console have no streams
        return stream
    try:
        return os.fdopen(os.dup(number), "w", buffering=1, encoding=stream.encoding, errors="backslashreplace")
    except OSError:
        return open(os.devnull, "w", encoding="utf-8")


def _signals() -> Callable[[], None]:
    if threading.current_thread() is not threading.main_thread():  # other threads cannot set them
        return lambda: None
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    return restore


def _locale() -> Callable[[], None]:
    before = locale.setlocale(locale.LC_ALL)

    def restore() -> None:
        if locale.setlocale(locale.LC_ALL) != before:
            locale.setlocale(locale.LC_ALL, before)

    return restore


def _warnings() -> Callable[[], None]:
    """Filters that turn warnings into errors; others stay, since libraries set them when they are first imported."""
    before = list(warnings.filters)

    def restore() -> None:
        if any(entry[0] == "error" and entry not in before for entry in warnings.filters):
            warnings.filters[:] = before  # type: ignore[index]
            with warnings.catch_warnings():  # clears Python's cache of the filters that apply
                pass

    return restore


def _numpy() -> Callable[[], None]:
    import numpy as np

    before = np.geterr()

    def restore() -> None:
        if np.geterr() != before:
            np.seterr(**before)

    return restore


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

    def restore() -> None:
        for (read, write), value in zip(settings, before, strict=True):
            if read() != value:
                write(value)

    return restore


_SETTINGS = (_arguments, _folder, _streams, _signals, _locale, _warnings, _numpy, _torch)
_SAVED = _SavedSettings()
