"""A step of `tastemaker iterate` that a launcher runs on several processes, such as `accelerate launch`."""

from __future__ import annotations

import gc
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch

from tastemaker.errors import ConfigError, ProcessLost
from tastemaker.training.signals import Interrupted, Preempted, handled

EXAMPLE = "accelerate launch --num_processes 8"


def launcher_words(launcher: str | None) -> tuple[str, ...]:
    """The words of a launcher's command, none where None is given. Raises ConfigError where it cannot be run."""
    if launcher is None:
        return ()
    try:
        words = tuple(shlex.split(launcher))
    except ValueError as error:
        raise ConfigError(f"the launcher {launcher!r} is no command: {error}") from error
    if not words or shutil.which(words[0]) is None:
        raise ConfigError(
            f"the launcher is {launcher!r}, but there is no such program: expected a command that takes `-m MODULE`, "
            f"such as {EXAMPLE!r}"
        )
    return words


def count_processes(launcher: Sequence[str]) -> int:
    """How many processes a launcher starts, which is found out by starting them; 1 without a launcher.

    Raises ConfigError where it cannot start them.
    """
    if not launcher:
        return 1
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "processes"
        command = [*launcher, "-m", "tastemaker.process_count", str(file)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        if done.returncode or not file.is_file():
            said = "\n".join(done.stdout.strip().splitlines()[-10:]) or "(it printed nothing)"
            raise ConfigError(
                f"the launcher {shlex.join(launcher)!r} ended with exit code {done.returncode} without having started "
                f"`python -m MODULE`, which it was tried with before anything else:\n{said}"
            )
        return int(file.read_text(encoding="utf-8"))


def launch(launcher: Sequence[str], arguments: Sequence[str]) -> None:
    """Runs `LAUNCHER -m tastemaker ARGUMENTS` and waits for it.

    Ctrl-C reaches it through the terminal and SIGTERM is handed on, so that a run ends as it does alone: after its
    round, saved. Raises Interrupted or Preempted then, and ProcessLost where it ends with another exit code than 0.
    """
    gc.collect()
    if torch.cuda.is_initialized():  # what this process has cached of the first device is for its run
        torch.cuda.empty_cache()
    command = [*launcher, "-m", "tastemaker", *arguments]
    process = subprocess.Popen(command)
    asked: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if number == signal.SIGTERM:
            process.send_signal(number)

    with handled(handle):
        code = process.wait()
    if asked:
        name, error = ("SIGTERM", Preempted) if signal.SIGTERM in asked else ("Ctrl-C", Interrupted)
        raise error(f"the alignment was stopped by {name}")
    if code:
        raise ProcessLost(
            f"the alignment ended with exit code {code}, for reasons that are said above: {shlex.join(command)}"
        )
