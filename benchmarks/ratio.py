"""How far log-probabilities are off before the first update, by rows in a micro-batch: docs/results/ddpo.md.

    python benchmarks/ratio.py [--precision bf16]

The bundled model, 8 images in one batch, 20 steps, guidance 5, log-probabilities summed over the 256 elements of a
latent. For each size of micro-batch the largest |log p - log p in sampling| of all rows.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from tastemaker.algorithms.base import Task
from tastemaker.data.prompts import load_prompts
from tastemaker.diffusion.sampler import batches, sample
from tastemaker.diffusion.sde import ddim
from tastemaker.models import load_model
from tastemaker.models.tuning import Tuning
from tastemaker.types import Draw, all_rows

IMAGES, STEPS, GUIDANCE = 8, 20, 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model("bundled", arguments.precision, torch.device("cpu"))
    model.tune(Tuning(rank=4))
    prompts = load_prompts("bundled-eight").prompts
    cond = model.encode(prompts, GUIDANCE)
    draw = Draw(0, 1, prompts, tuple(range(IMAGES)), (0,) * IMAGES)
    grid = model.process.grid(STEPS)
    rollout = sample(model, cond, draw, ddim(grid, 1.0), ddim(grid, 1.0).stochastic(), reduction="sum")
    rows = all_rows(replace(rollout, advantage=torch.ones(IMAGES)))
    task = Task(model, ddim(grid, 1.0), "sum")
    with torch.no_grad():
        for size in (1, 2, 3, 4, 8, 16):
            parts = [rows.select(slice(part.start, part.stop)).transitions() for part in batches(len(rows), size)]
            worst = max((task.log_prob(part) - part.logp).abs().max().item() for part in parts if len(part.x) == size)
            print(f"{size:3d} rows: {worst:.1e}", flush=True)


if __name__ == "__main__":
    main()
