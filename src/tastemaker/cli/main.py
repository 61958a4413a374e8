"""The console script. Only the verb asked for is imported, and none imports torch before it runs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from tastemaker.errors import ConfigError, TastemakerError, nearest

VERBS = {
    "train": "train a model to a reward, from a preset or a file",
    "resume": "go on with a run that was stopped",
    "sample": "make pictures with a model or with what a run trained",
    "mix": "mix adapters, and measure the mixtures by the rewards of both",
    "report": "write a run's report, or compare several runs",
    "reward": "serve a reward to runs on other machines",
    "bench": "measure speed, memory and overhead of a model and its settings",
    "ls": "list presets, algorithms, rewards, prompts and models",
    "doctor": "show what is installed and what is missing",
}
"""Verbs, each a module of this package with a function `run(words) -> exit code`, and what they do."""

_HELP = """usage: tastemaker VERB ...

Fine-tunes text-to-image diffusion models to a reward or to human taste.

verbs:
{verbs}

`tastemaker VERB --help` shows a verb's own options.
A first run:  tastemaker train ddpo-compressibility
With TASTEMAKER_DEBUG=1 in the environment, errors show where they come from."""


def help_text() -> str:
    """What `tastemaker --help` prints."""
    return _HELP.format(verbs="\n".join(f"  {verb:8} {summary}" for verb, summary in VERBS.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit code: 0, 2 for a mistake in what was asked, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except TastemakerError as error:
        if os.environ.get("TASTEMAKER_DEBUG") == "1":
            import traceback

            traceback.print_exc()
        print(f"tastemaker: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except SystemExit as stop:  # tyro's own end after --help
        if isinstance(stop.code, str):
            print(f"tastemaker: {stop.code}", file=sys.stderr)
            return 1
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        print("tastemaker: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader left, as `head` does. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if words[0] == "--version":
        from tastemaker import __version__

        print(f"tastemaker {__version__}")
        return 0
    if words[0] not in VERBS:
        raise ConfigError(f"unknown verb {words[0]!r}; {nearest(words[0], list(VERBS))}")
    return importlib.import_module(f"tastemaker.cli.{words[0]}").run(words[1:])
