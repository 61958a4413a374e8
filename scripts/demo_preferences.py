"""`make demo-preferences`: from people's comparisons to an aligned model, twice, with simulated people.

python scripts/demo_preferences.py             # in minutes on a laptop
python scripts/demo_preferences.py --people    # prints the address, and you label
python scripts/demo_preferences.py seed=1      # with further settings of `tastemaker iterate`
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from tastemaker.cli.main import main

TASTE = "hidden_taste:utility"
"""What the simulated people like (examples/hidden_taste.py). No alignment sees it, only the evaluations."""


def demo(people: bool, tasks: int, settings: Sequence[str] = ()) -> int:
    """Two iterations, and a page over both; `settings` are further words of `tastemaker iterate`."""
    start = time.monotonic()
    folder = next(path for n in itertools.count(1) if not (path := Path("runs") / f"preferences-{n}").exists())
    simulated = [] if people else ["--simulate", "--simulated.utility", TASTE, "--simulated.temperature", "0.15"]
    # Without guidance a step is one pass of the network in place of two. Images then keep their prompt only as far as
    # the reward model knows it: PPO that followed one on the U-Net lost it (docs/results/preference-loop.md).
    words = [
        "iterate", "ddpo-compressibility", "--out", str(folder), "--iterations", "2", "--tasks", str(tasks), *simulated,
        "--policy", "previous",
        "--label.title", "Taste", "--label.question", "Which image do you like better?",
        "--network.kind", "head", "--network.hidden", "64",
        "--reward-model.members", "3", "--reward", "REWARD_MODEL:penalty=1",
        "--prompts", "bundled-single-train", "--evaluation.unseen", "bundled-single-test",
        "--evaluation.rewards", TASTE, "rounds=8", "optimizer.lr=3e-3", "optimizer.lr_scheduler=linear",
        "sampling.guidance=1", "sampling.steps=10", "sampling.samples=64", "sampling.per_prompt=4",
        "evaluation.prompts=16", "evaluation.per_prompt=4", "evaluation.every=4", *settings,
    ]  # fmt: skip
    print(f"$ tastemaker {' '.join(words)}", flush=True)
    code, page = main(words), folder / "report.html"
    if page.exists():
        print(f"\n{time.monotonic() - start:.0f} s; the page over all: {page}")
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", action="store_true", help="wait for people in place of simulated ones")
    parser.add_argument("--tasks", type=int, help="labelling tasks of each iteration (default: 200; 60 with --people)")
    arguments, settings = parser.parse_known_args()
    tasks = arguments.tasks if arguments.tasks is not None else 60 if arguments.people else 200
    sys.exit(demo(arguments.people, tasks, settings))
