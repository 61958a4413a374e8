"""Seconds and peak memory of one AlignProp update by how many steps learn, each in a process of its own.

    python benchmarks/backprop_memory.py [--model bundled] [--steps 50] [--images 4] [--repeats 3]

`block`, `step`, `edict` and `none` are ours. `public` does what the public code does: every step with a graph, the
prediction detached before the first trained step, a checkpoint around the whole network, the decoder's graph kept. Peak
memory is that of the process (of the tensors on a GPU), with what it had before the update beside it. Writes
docs/results/backprop-memory.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

KINDS = ("block", "step", "edict", "none", "public")


def measure(model_name: str, steps: int, images: int, last: int, kind: str, guidance: float) -> dict[str, float]:
    """Seconds and peak GiB of one update's forward and backward pass in this process, after a short one to warm up."""
    import torch

    from tastemaker.algorithms.reward_backprop import MIXING
    from tastemaker.benchmarking.bench import peak_memory
    from tastemaker.benchmarking.trace import clock
    from tastemaker.diffusion.backprop import chain, shown
    from tastemaker.diffusion.edict import coupled_chain
    from tastemaker.diffusion.sde import ddim
    from tastemaker.models import load_model
    from tastemaker.models.tuning import Tuning
    from tastemaker.rewards.colour import soft_colourfulness
    from tastemaker.types import Draw

    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(model_name, "fp32", device)
    model.tune(Tuning(gradient_checkpointing=kind == "block"))
    prompts = ("a red circle",) * images if model_name == "bundled" else ("a cat",) * images
    draw = Draw(0, 1, prompts, tuple(range(images)), (0,) * images)
    cond = model.encode(prompts, guidance)

    def update(count: int, grad_steps: int) -> None:
        sde = ddim(model.process.grid(count, model.latent_shape), 0.0)
        chosen = list(range(count))[-grad_steps:]
        if kind == "public":
            x0 = public(model, cond, draw, sde, chosen[0])
            x = model.decode(x0)
        elif kind == "edict":
            x = shown(model, coupled_chain(model, cond, draw, sde, chosen, mixing=MIXING).x0)
        else:
            recompute = kind != "none"
            x = shown(model, chain(model, cond, draw, sde, chosen, recompute=recompute).x0, recompute=recompute)
        (-soft_colourfulness(x, prompts)).sum().backward()

    update(2, 1)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    # On a CPU the processor's own seconds, of the one thread: other processes do not count.
    now = (lambda: clock(device)) if device.type == "cuda" else time.process_time
    before, start = peak_memory(device), now()
    update(steps, last)
    return {"seconds": now() - start, "before": before, "peak": peak_memory(device)}


def public(model: Any, cond: Any, draw: Any, sde: Any, first: int) -> Any:
    """Sampling as AlignProp's public code does it, on our network and our step."""
    import torch
    from torch.utils.checkpoint import checkpoint

    from tastemaker.diffusion.sde import times

    x = draw.noise(0, model.latent_shape, model.device)
    for step in range(len(sde)):
        x0 = checkpoint(lambda x, step=step: model.denoise(x, times(sde, step, x), cond), x, use_reentrant=False)
        assert isinstance(x0, torch.Tensor)
        x0 = x0.detach() if step < first else x0
        mean, _ = sde.step(x.to(x0.dtype), x0, step)
        x = mean.to(x.dtype)
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--last", default="1,5,10,20,50", help="comma-separated numbers of trained steps")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/results/backprop-memory.json"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        kind, last = arguments.one[0], int(arguments.one[1])
        print(json.dumps(measure(
            arguments.model, arguments.steps, arguments.images, last, kind, arguments.guidance
        )))  # fmt: skip
        return
    table: dict[str, Any] = {"settings": {k: v for k, v in vars(arguments).items() if k not in ("out", "one")}}
    cells = [(kind, int(last)) for kind in arguments.kinds.split(",") for last in arguments.last.split(",")]
    found: dict[tuple[str, int], list[dict[str, float]]] = {cell: [] for cell in cells}
    # Round by round, so that what the machine does besides meets all of them alike.
    for _ in range(arguments.repeats):
        for kind, last in cells:
            command = [sys.executable, *sys.argv, "--one", kind, str(last)]
            found[kind, last].append(json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))
    for (kind, last), runs in found.items():
        middle = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
        table[f"{kind}, last {last}"] = middle
        print(
            f"{kind:7} last {last:3}: {middle['seconds']:7.2f} s   {middle['before']:.2f} -> {middle['peak']:.2f} GiB"
        )
    arguments.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
