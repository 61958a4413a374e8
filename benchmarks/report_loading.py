"""How long the report of a long run takes to be written and to be shown in the system's Chromium.

    python benchmarks/report_loading.py [--rounds 1000] [--checkpoints 25] [--images 80] [--side 512]

The run has noise for images, which compresses worse than pictures do. Shown means: the page's load event, after which
all images of the first view are decoded; median of five visits, each by a browser of its own context.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tastemaker.report.page import write_report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/browser"))
from browsing import chromium


def make_run(folder: Path, rounds: int, checkpoints: int, images: int, side: int) -> None:
    """Metrics of all rounds, and `images` images at each of the checkpoints; smooth noise, four images a prompt."""
    random = np.random.default_rng(0)
    at = [round(rounds * index / (checkpoints - 1)) for index in range(checkpoints)]
    lines = []
    for n in range(rounds + 1):
        mean = n / rounds + 0.05 * random.standard_normal()
        shared = {"reward/mean": mean, "reward/base_stds": mean, "judge/correct": 0.9, "diversity": 0.3}
        if n:
            lines.append({"round": n, **shared, "reward/std": 0.4, "reward/min": mean - 1, "reward/max": mean + 1,
                          "clip_fraction": 0.1, "approx_kl": 1e-8, "grad_norm": 0.5, "ratio_deviation/max": 1e-3,
                          "ratio_deviation/mean": 1e-4, "seconds/sample": 20.0, "seconds/round": 60.0})  # fmt: skip
        if n in at:
            lines.append({"evaluation": n, **{f"eval/{name}": value for name, value in shared.items()}})
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("model: bundled\nreward: aesthetic\nalgorithm:\n  name: ddpo\n")
    for n in at:
        samples = folder / f"samples/round-{n:04d}"
        samples.mkdir(parents=True)
        listed = []
        for index in range(images):
            small = random.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(samples / f"{index:03d}.png")
            listed.append({"file": f"{index:03d}.png", "prompt": f"a prompt with the number {index // 4}",
                           "seed": index % 4, "reward": float(random.standard_normal()), "correct": True})  # fmt: skip
        (samples / "samples.json").write_text(json.dumps({"round": n, "samples": listed}))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--checkpoints", type=int, default=25)
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--side", type=int, default=512)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        run = Path(folder) / "run"
        make_run(run, args.rounds, args.checkpoints, args.images, args.side)
        began = time.perf_counter()
        report = write_report(run)
        written = time.perf_counter() - began
        loads, moves = [], []
        for _ in range(5):
            page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            began = time.perf_counter()
            page.goto(report.as_uri())
            loads.append(time.perf_counter() - began)
            moves.append(page.evaluate(
                "() => { const from = performance.now(); const slider = document.getElementById('slider');"
                " slider.value = 3; slider.dispatchEvent(new Event('input'));"
                " return Promise.all([...document.images].map((image) => image.decode().catch(() => 0)))"
                ".then(() => performance.now() - from); }"
            ))  # fmt: skip
            page.context.close()
        print(
            f"{args.rounds} rounds, {args.checkpoints * args.images} images of {args.side} px: written in "
            f"{written:.1f} s, {report.stat().st_size / 1e6:.1f} MB, shown in {statistics.median(loads):.2f} s, "
            f"another checkpoint in {statistics.median(moves):.0f} ms"
        )


if __name__ == "__main__":
    main()
