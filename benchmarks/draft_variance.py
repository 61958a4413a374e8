"""Variance of one image's gradient in DRaFT-1 and DRaFT-LV: the table of docs/results/draft.md.

    python benchmarks/draft_variance.py [--images 32]

The bundled model with small random adapters, 20 steps, guidance 5, the JPEG size as a network counts it. With g_i the
gradients of n images, all of different prompts and noise, the variance V is the sum over all weights of their sample
variances, and the squared mean M = |mean g|^2 - V / n, which has no bias but a large error where V / M exceeds n.
DRaFT-1's gradient is smaller by the weight w that the last step gives to the network's estimate, so V / w^2 is what
compares with DRaFT-LV's V.
DRaFT-LV's gradient is the mean of those of its noises, and that of n noises the mean of the first n of 8.
Writes docs/results/draft-variance.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from running import publish
from torch import Tensor

from tastemaker.data.prompts import load_prompts
from tastemaker.diffusion.backprop import chain, renoised, shown
from tastemaker.diffusion.sde import ddim
from tastemaker.models import load_model
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.tuning import Tuning
from tastemaker.rewards.jpeg_surrogate import jpeg_surrogate_compressibility
from tastemaker.types import Cond, Draw

STEPS, GUIDANCE, NOISES = 20, 5.0, 8


def gradient(model: LatentUNet, x0: Tensor, prompt: str) -> Tensor:
    """[P] gradient of minus the reward of one image's latents [1,*D]."""
    reward = jpeg_surrogate_compressibility(shown(model, x0, recompute=False), [prompt])
    parts = torch.autograd.grad(-reward.sum(), list(model.weights.trainable().values()))
    return torch.cat([part.flatten() for part in parts]).double()


def gradients(model: LatentUNet, cond: Cond, draw: Draw, eta: float) -> tuple[Tensor, Tensor]:
    """DRaFT-1's gradients [n,P], and DRaFT-LV's for each of its noises [NOISES,n,P]."""
    grid = model.process.grid(STEPS)
    direct, noised = [], [[] for _ in range(NOISES)]
    for image, prompt in enumerate(draw.prompts):
        own, own_cond = draw.select([image]), cond.select(slice(image, image + 1))
        x0 = chain(model, own_cond, own, ddim(grid, eta), [STEPS - 1], recompute=False).x0
        direct.append(gradient(model, x0, prompt))
        for number in range(NOISES):
            noise = own.noise(2**43 + number, x0.shape[1:])
            seen = renoised(model, own_cond, x0, noise, ddim(grid, eta), STEPS - 1, STEPS, recompute=False)
            noised[number].append(gradient(model, seen, prompt))
    return torch.stack(direct), torch.stack([torch.stack(one) for one in noised])


def weight(model: LatentUNet, eta: float) -> float:
    """By how much the last step's latent moves for a move of 1 in the estimate of x_0, over the scale of x_0 in it."""
    grid, step = model.process.grid(STEPS), torch.tensor([STEPS - 1])
    one = torch.ones(1, 1, dtype=torch.float64)
    moved = ddim(grid, eta).step(0 * one, one, step)[0] - ddim(grid, eta).step(0 * one, 0 * one, step)[0]
    return (moved / grid.alpha_next[-1]).item()


def summary(found: Tensor) -> dict[str, float]:
    """V, M and V / M of gradients [n,P]."""
    variance = found.var(dim=0).sum()
    square = found.mean(dim=0).square().sum() - variance / len(found)
    return {"V": float(f"{variance:.4g}"), "M": float(f"{square:.4g}"), "V/M": round((variance / square).item(), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("docs/results/draft-variance.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model("bundled", "fp32", torch.device("cpu"))
    assert isinstance(model, LatentUNet)
    model.tune(Tuning(rank=4))
    random = torch.Generator().manual_seed(7)
    for name, parameter in sorted(model.weights.trainable().items()):
        if "lora_B" in name:
            parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=random))
    prompts = load_prompts("bundled-single")
    chosen = prompts.spread(arguments.images)
    draw = Draw(0, 1, tuple(prompts.prompts[place] for place in chosen), tuple(chosen), (0,) * len(chosen))
    cond = model.encode(draw.prompts, GUIDANCE)
    result: dict[str, object] = {"images": len(draw), "steps": STEPS, "guidance": GUIDANCE}
    for eta in (1.0, 0.0):
        direct, noised = gradients(model, cond, draw, eta)
        lv = {f"LV, n = {n}": summary(noised[:n].mean(dim=0)) for n in (1, 2, NOISES)}
        both = summary((noised[:2].sum(dim=0) + direct) / 3)
        one = summary(direct)
        scaled = float(f"{one['V'] / weight(model, eta) ** 2:.4g}")
        result[f"eta {eta:g}"] = {"DRaFT-1": one | {"V/w^2": scaled}, **lv, "LV, n = 2, ordinary": both}
    publish(result, arguments.out)


if __name__ == "__main__":
    main()
