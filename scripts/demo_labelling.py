"""`make demo-labelling`: a labelling project on the bundled model's images, labelled and exported in minutes.

python scripts/demo_labelling.py             # labelled by simulated people
python scripts/demo_labelling.py --people    # prints the address, and you label
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

import tastemaker as tm
from tastemaker.cli.main import main


def command(*argv: str) -> None:
    """Runs a command as a person would, and ends where it fails."""
    print(f"\n$ tastemaker {' '.join(argv)}", flush=True)
    if code := main(list(argv)):
        sys.exit(code)


def free(stem: str) -> Path:
    """The first of labels/STEM-1, labels/STEM-2, ... that is not there."""
    return next(path for n in itertools.count(1) if not (path := Path("labels") / f"{stem}-{n}").exists())


def demo(wait: bool, tasks: int) -> None:
    """Creates, serves, labels, counts and exports a project."""
    start, folder = time.monotonic(), str(free("demo"))
    command(
        "label", "create", folder, "--prompts", "bundled-pair", "--tasks", str(tasks), "--mode", "rank", "--k", "4",
        "--steps", "20", "--overlap", "2", "--repeat-rate", "0.1", "--title", "Shapes",
        "--question", "Which image shows the prompt better?",
    )  # fmt: skip
    if wait:
        command("label", "serve", folder)
        return
    with tm.label.open(folder) as project, tm.label.serving(project) as address:
        print(f"\n{folder} is served at {address}")
        command(
            "label", "simulate", folder, "--labelers", "4", "--temperature", "0.05", "--tie", "0.02", "--undo", "0.05"
        )
    command("label", "stats", folder)
    command("label", "export", folder, "--format", "pairs")
    command("label", "export", folder)
    print(f"\n{time.monotonic() - start:.0f} s; label the rest yourself with: tastemaker label serve {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", action="store_true", help="wait for people in place of simulated ones")
    parser.add_argument("--tasks", type=int, default=30)
    arguments = parser.parse_args()
    demo(arguments.people, arguments.tasks)
