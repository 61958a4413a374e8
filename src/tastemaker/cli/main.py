"""The console script. Only the command asked for is imported, and none imports torch before it runs."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from tastemaker.errors import ConfigError, StorageError, TastemakerError, nearest
from tastemaker.printing import Output, escaped_output

COMMANDS = {
    "train": "train a model to a reward, from a preset or a file",
    "resume": "go on with a run that was stopped",
    "sample": "make images with a model or with what a run trained",
    "mix": "mix adapters, and measure the mixtures by the rewards of both",
    "evaluate": "compare models, runs and mixtures on the same prompts and seeds, with intervals",
    "ask": "run a benchmark that asks questions about a model's images",
    "export": "write what a run trained as a file for diffusers, kohya's scripts and web UIs, or ComfyUI",
    "report": "write a run's report, or compare several runs",
    "label": "let people compare images in their browsers",
    "compare": "let people compare models without knowing whose image is whose",
    "iterate": "go round: sample, label, reward model, alignment, and again",
    "convert": "make a folder of a diffusers pipeline of a model in another form",
    "reward": "serve a reward to other machines, or train one on people's comparisons",
    "bench": "measure speed, memory and overhead of a model and its settings",
    "ls": "list presets, algorithms, rewards, prompts, models and benchmarks",
    "doctor": "show what is installed and what is missing",
}
"""Commands, each a module of this package with a function `run(argv) -> exit code`, and what they do."""

PRINTING = ("ls", "doctor", "help", "-h", "--help", "--version")
"""Those whose whole work is what they print: a reader who leaves ends them. The work of others is in files."""
PIPE_CLOSED = 141
"""Their exit code then, as a shell shows it of programs that SIGPIPE ends."""

_HELP = """usage: tastemaker COMMAND ...

Fine-tunes text-to-image diffusion models to a reward or to human taste.

commands:
{commands}

`tastemaker COMMAND --help` shows a command's own options.
A first run:  tastemaker train ddpo-compressibility
With TASTEMAKER_DEBUG=1 in the environment, errors show where they come from."""


def help_text() -> str:
    """What `tastemaker --help` prints."""
    return _HELP.format(commands="\n".join(f"  {command:8} {summary}" for command, summary in COMMANDS.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code: 0, 2 for a mistake in what was asked, 130 after Ctrl-C."""
    _open_standard_streams()
    # Figures go to files only; the backend of the environment may be missing here, or be left over from a notebook.
    os.environ["MPLBACKEND"] = "agg"
    with escaped_output():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> int:
    try:
        code = _dispatch(argv)
        prints = not argv or argv[0] in PRINTING
        return code if _flushed(sys.stdout) or not prints else PIPE_CLOSED
    except TastemakerError as error:
        return _failed(error, str(error), error.exit_code)
    except SystemExit as stop:  # tyro's own end after --help
        if isinstance(stop.code, str):
            print(f"tastemaker: {stop.code}", file=sys.stderr)
            return 1
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        _complain("stopped")
        return 130
    except BrokenPipeError:
        _flushed(sys.stdout)
        return PIPE_CLOSED
    except OSError as error:  # what no code nearer to it has foreseen: a disk, a limit, a permission
        _flushed(sys.stdout)
        where = "" if error.filename is None else f": {error.filename}"
        return _failed(error, f"{error.strerror or error}{where}", StorageError.exit_code)


def _failed(error: Exception, text: str, code: int) -> int:
    if os.environ.get("TASTEMAKER_DEBUG") == "1":
        import traceback

        with contextlib.suppress(OSError, ValueError):
            traceback.print_exception(error)
    _complain(" ".join(text.split()))
    return code


def _complain(text: str) -> None:
    errors = Output(sys.stderr)  # where nobody reads it, the exit code says it too
    errors.write(f"tastemaker: {text}\n")
    errors.flush()


def _flushed(stream: TextIO) -> bool:
    """Writes what is still to be written, and returns whether that succeeded."""
    try:
        stream.flush()
        return True
    except (OSError, ValueError):
        # The reader left, as `head` does, or the disk is full. Python would complain once more when it flushes at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False


def _open_standard_streams() -> None:
    """Opens standard streams that were closed by who started this (`>&-`) on the null device.

    Otherwise the next file that is opened gets the number of standard output, and is written to by whoever prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
            os.set_inheritable(number, True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as the process lives
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if argv[0] == "--version":
        from tastemaker import __version__

        print(f"tastemaker {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise ConfigError(f"unknown command {argv[0]!r}; {nearest(argv[0], list(COMMANDS))}")
    return importlib.import_module(f"tastemaker.cli.{argv[0]}").run(argv[1:])
