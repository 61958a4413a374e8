"""Trains the bundled model so that its images compress well as JPEG, and shows the images before and after.

python examples/quickstart.py [--rounds 4] [--out FOLDER] [setting=value ...]

Settings are those of `tastemaker train`, as in optimizer.lr=1e-4.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import tastemaker as tm


def main(words: Sequence[str] | None = None) -> tm.Run:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="setting=value")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", help="folder of the run (default: the next free runs/ddpo-<n>)")
    args = parser.parse_args(words)

    # A preset is a whole config; its settings are changed as on the command line.
    config = tm.preset("ddpo-compressibility", *args.settings)
    run = tm.train(config, rounds=args.rounds, out=args.out)

    # A run is a folder: its figures, its images and the adapter that it trained.
    for record in run.metrics():
        print(f"round {record['round']}: mean reward {record['reward/mean']:.3f} kB")
    before, after = run.images(round=0), run.images()
    for first, last in zip(before, after, strict=True):
        print(f"{first.prompt}, image {first.seed}: {first.reward:.3f} -> {last.reward:.3f} kB")
    print(f"adapter: {run.adapter}\nreport: {run.report}")
    return run


if __name__ == "__main__":
    main()
