"""How far log-probabilities are off before the first update, by rows in a micro-batch: docs/results/ddpo.md.

    python benchmarks/ratio.py [--precision bf16] [--model MODEL] [--graph] [--json]

The bundled model, 8 images in one batch, 20 steps, guidance 5, log-probabilities summed over the 256 elements of a
latent. For each size of micro-batch the largest |log p - log p in sampling| of all rows. `--graph` computes them with a
graph, as training does; a size that does not fit into a GPU's memory is recorded as such. The model is on the GPU where
there is one.
"""

from __future__ import annotations

import argparse
import gc
import json
from dataclasses import replace
from math import prod
from typing import Any

import torch

from tastemaker.algorithms.base import Task
from tastemaker.data.prompts import load_prompts
from tastemaker.diffusion.sampler import batches, sample
from tastemaker.diffusion.sde import make_sde
from tastemaker.models import load_model
from tastemaker.models.tuning import Tuning
from tastemaker.types import Draw, Rows, all_rows

GUIDANCE = 5.0


def worst_difference(task: Task, rows: Rows, size: int, graph: bool) -> float | None:
    """The largest |log p - log p in sampling| of rows in micro-batches of `size`; None where they do not fit a GPU."""
    parts = [rows.select(slice(part.start, part.stop)).transitions() for part in batches(len(rows), size)]
    worst = 0.0
    try:
        with torch.set_grad_enabled(graph):
            for part in parts:
                if len(part.x) == size:
                    worst = max(worst, (task.log_prob(part) - part.logp).detach().abs().max().item())
    except torch.OutOfMemoryError:
        return None
    return worst


def measure(
    model_name: str, precision: str, device: torch.device, images: int, steps: int, sizes: list[int], graph: bool
) -> dict[str, Any]:
    """Differences of log-probabilities by size, and what they were measured with."""
    model = load_model(model_name, precision, device)
    model.tune(Tuning(rank=4))
    prompts = load_prompts("bundled-eight").prompts
    chosen = tuple(prompts[number % len(prompts)] for number in range(images))
    cond = model.encode(chosen, GUIDANCE)
    draw = Draw(0, 1, chosen, tuple(range(images)), (0,) * images)
    sde = make_sde(model, steps, 1.0, "auto")
    rollout = sample(model, cond, draw, sde, sde.stochastic(), reduction="sum")
    rows = all_rows(replace(rollout, advantage=torch.ones(images, device=device)))
    task = Task(model, sde, "sum")
    found = {}
    for size in sizes:
        found[size] = worst_difference(task, rows, size, graph)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    elements = prod(model.latent_shape)
    return {
        "model": model_name, "precision": precision, "device": device.type, "graph": graph, "images": images,
        "steps": steps, "elements": elements, "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "sum": found, "mean": {size: None if worst is None else worst / elements for size, worst in found.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--images", type=int, default=8, help="sampled in one batch")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 3, 4, 8, 16], help="sizes of micro-batches")
    parser.add_argument("--graph", action="store_true", help="with a graph, as in training")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    found = measure(
        arguments.model, arguments.precision, device, arguments.images, arguments.steps, arguments.rows, arguments.graph
    )
    if arguments.json:
        print(json.dumps(found))
        return
    for size, worst in found["sum"].items():
        print(f"{size:3d} rows: " + ("out of memory" if worst is None else f"{worst:.1e}"), flush=True)


if __name__ == "__main__":
    main()
