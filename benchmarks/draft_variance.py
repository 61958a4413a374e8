"""Variance of one image's gradient in DRaFT-1 and DRaFT-LV: the table of docs/methods/draft.md.

    python benchmarks/draft_variance.py [--images 64]

The bundled model with small random adapters, 20 steps, guidance 5, the JPEG size as a network counts it. With g_i the
gradients of n images, all of different prompts and noise, the variance V is the sum over all weights of their sample
variances, and the squared mean M = |mean g|^2 - V / n, which has no bias. V / M is what one image's gradient has of
noise, whatever its scale: DRaFT-1's is smaller by the weight that the last step gives to the network's estimate.
Writes docs/draft-variance.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from runs import publish
from torch import Tensor

from tastemaker.algorithms.draft import DRaFT
from tastemaker.models import load_model
from tastemaker.models.tuning import Tuning
from tastemaker.prompts import load_prompts
from tastemaker.rewards.jpeg_surrogate import jpeg_surrogate_compressibility
from tastemaker.task import Task
from tastemaker.types import Draw, Rollout, Rows

STEPS, GUIDANCE = 20, 5.0
METHODS = {
    "DRaFT-1": DRaFT(checkpointing="none"),
    "LV, n = 1": DRaFT(noises=1, checkpointing="none"),
    "LV, n = 2": DRaFT(noises=2, checkpointing="none"),
    "LV, n = 8": DRaFT(noises=8, checkpointing="none"),
    "LV, n = 2, ordinary": DRaFT(noises=2, ordinary=True, checkpointing="none"),
}


def gradients(task: Task, method: DRaFT, rows: Rows) -> Tensor:
    """[n,P] gradients of each image's loss."""
    parameters = list(task.model.trainable().values())  # type: ignore[attr-defined]
    found = []
    for image in range(len(rows)):
        loss, _ = method.loss(task, rows.select(slice(image, image + 1)))
        found.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss.sum(), parameters)]))
    return torch.stack(found).double()


def told(found: Tensor) -> dict[str, float]:
    """V, M and V / M of gradients [n,P]."""
    variance = found.var(dim=0).sum()
    square = found.mean(dim=0).square().sum() - variance / len(found)
    return {"V": variance.item(), "M": square.item(), "V/M": round((variance / square).item(), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("docs/draft-variance.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model("bundled", "fp32", torch.device("cpu"))
    model.tune(Tuning(rank=4))
    random = torch.Generator().manual_seed(7)
    for name, parameter in sorted(model.trainable().items()):
        if "lora_B" in name:
            parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=random))
    chosen = load_prompts("bundled-single").prompts[: arguments.images]
    n = len(chosen)
    cond = model.encode(chosen, GUIDANCE)
    draw = Draw(0, 1, tuple(chosen), tuple(range(n)), (0,) * n)
    empty = cond.text.new_empty(n, 0)
    rollout = Rollout(empty, torch.empty(0, dtype=torch.int64), empty, empty, cond.text, draw=draw)
    learns = torch.zeros(n, STEPS, dtype=torch.bool)
    learns[:, -1] = True
    rows = Rows(rollout, torch.arange(n), torch.zeros(n, dtype=torch.int64), learns=learns)
    grid = model.process.grid(STEPS)
    result: dict[str, object] = {"images": n, "steps": STEPS, "guidance": GUIDANCE}
    for eta in (1.0, 0.0):
        task = Task(model, grid, eta, cond.empty, GUIDANCE, reward=jpeg_surrogate_compressibility)
        result[f"eta {eta:g}"] = {name: told(gradients(task, method, rows)) for name, method in METHODS.items()}
    publish(result, arguments.out)


if __name__ == "__main__":
    main()
