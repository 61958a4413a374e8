"""A rehearsal's steps in processes forked from one that has imported the libraries, which saves ten seconds each.

Not for a GPU: some libraries ask CUDA for its devices when they are imported, and a process that has can use CUDA no
more once it is forked.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from forked import Child


def fork(command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]) -> Child:
    """Begins what `python COMMAND` does, in `folder`. What it writes is added to `log`."""
    return Child(run_words, *command, str(folder), log=log, environment=dict(environment))


def run_words(*words: str) -> None:
    """`python WORDS` in the folder that the last word names, in this process, which leads a group of its own."""
    *command, folder = words
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler is not for steps
    os.setsid()
    os.chdir(folder)
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    elif command[0] == "-c":
        sys.argv = ["-c", *command[2:]]
        exec(compile(command[1], "command", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = list(command)
        runpy.run_path(command[0], run_name="__main__")
