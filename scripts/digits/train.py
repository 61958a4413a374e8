"""Makes the two small models of docs/guides/pixel-models.md: `digits` (fours) and `drawn32` (muted drawings).

    python scripts/digits/train.py digits    # needs scikit-learn (pip install -e ".[dev]")
    python scripts/digits/train.py drawn32

Each becomes a diffusers DDPMPipeline with float16 weights in build/NAME; scripts/digits/show.py draws their images.
On one thread, measured: digits 17 minutes beside other work (0.31 s a step, 13 minutes, when alone), drawn32 515 s of
computing.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel, compute_snr
from torch import Tensor

from tastemaker.drawings import Scene, Thing, render
from tastemaker.drawings.scene import COLOURS, KINDS

SIZE, LR, MIN_SNR, EMA_DECAY = 32, 1.5e-3, 5.0, 0.997
DRAWINGS, CLASS_DROPOUT = 10_000, 0.1
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
Batch = tuple[Tensor, Tensor | None]
"""Images [B,C,32,32] in [-1,1], and class indices [B] where there are classes."""


@dataclass(frozen=True)
class Recipe:
    """What tells the two models apart."""

    data: Callable[[int], Callable[[], Batch]]
    """Loads or makes the images, and gives a function that draws a batch of them, of the size given."""
    channels: int
    widths: tuple[int, ...]
    """Channels of the U-Net's levels, of 32, 16, 8 (with attention) and 4 pixels a side."""
    batch: int
    steps: int
    classes: tuple[str, ...] = ()
    prediction: str = "epsilon"


def fours(batch: int) -> Callable[[], Batch]:
    """scikit-learn's 181 handwritten fours, from 8x8 to sharp-edged strokes of 24x24, shifted and turned a little."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    small = torch.from_numpy(digits.images[digits.target == 4]).float()[:, None] / 16
    large = F.interpolate(small, size=24, mode="bicubic")
    strokes = F.pad(torch.sigmoid((large - 0.53) * 12), (4, 4, 4, 4))

    def draw() -> Batch:
        chosen = strokes[torch.randint(len(strokes), (batch,))]
        angle, scale = 0.12 * torch.randn(batch), 1 + 0.06 * torch.randn(batch)
        cos, sin, shift = angle.cos() / scale, angle.sin() / scale, 0.06 * torch.randn(2, batch)
        turn = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
        grid = F.affine_grid(turn, [batch, 1, SIZE, SIZE], align_corners=False)
        return F.grid_sample(chosen, grid, align_corners=False) * 2 - 1, None

    return draw


def muted_drawings(batch: int) -> Callable[[], Batch]:
    """One big object on a plain ground, most of its colour taken out: what a colourfulness reward can put back."""
    rng = random.Random(0)
    images, classes = [], []
    # An object that is as light as its ground would go with its colour.
    lightness = {name: float(np.dot(rgb, LUMA)) for name, rgb in COLOURS.items()}
    pairs = [(a, b) for a in COLOURS for b in COLOURS if abs(lightness[a] - lightness[b]) > 60]
    for number in range(DRAWINGS):
        kind = KINDS[number % len(KINDS)]
        colour, ground = rng.choice(pairs)
        x, y, radius = rng.uniform(0.45, 0.55), rng.uniform(0.45, 0.55), rng.uniform(0.32, 0.42)
        scene = Scene((Thing(kind, colour, x, y, radius),), ground)
        drawn = np.asarray(render(scene, SIZE, rng), dtype=np.float32)
        grey = drawn @ LUMA[:, None]
        images.append(grey + 0.5 * rng.random() ** 2 * (drawn - grey))
        classes.append(KINDS.index(kind))
    image_list = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    kinds = torch.tensor(classes)

    def draw() -> Batch:
        rows = torch.randint(len(image_list), (batch,))
        # The class after the last stands for none, as in DiT.
        return image_list[rows], torch.where(torch.rand(batch) < CLASS_DROPOUT, len(KINDS), kinds[rows])

    return draw


RECIPES = {
    "digits": Recipe(fours, channels=1, widths=(16, 32, 64), batch=32, steps=2500),
    "drawn32": Recipe(
        muted_drawings,
        channels=3,
        widths=(16, 32, 64, 96),
        batch=16,
        steps=2600,
        classes=KINDS,
        prediction="v_prediction",
    ),
}


def new_unet(recipe: Recipe) -> UNet2DModel:
    levels = len(recipe.widths)
    down = ["DownBlock2D"] * levels
    down[2] = "AttnDownBlock2D"
    return UNet2DModel(
        sample_size=SIZE, in_channels=recipe.channels, out_channels=recipe.channels, layers_per_block=1,
        block_out_channels=recipe.widths, down_block_types=tuple(down), norm_num_groups=8, attention_head_dim=8,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        num_class_embeds=len(recipe.classes) + 1 if recipe.classes else None,
    )  # fmt: skip


def train(recipe: Recipe, out: Path, steps: int) -> None:
    """Noise prediction with the loss weights of min-SNR (Hang et al. 2023); what is saved are averaged weights."""
    torch.manual_seed(0)
    began, busy = time.time(), time.process_time()
    draw, unet = recipe.data(recipe.batch), new_unet(recipe)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True, prediction_type=recipe.prediction)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LR, weight_decay=1e-2, fused=True)
    rate = get_cosine_schedule_with_warmup(optimizer, 100, steps)
    average = EMAModel(unet.parameters(), decay=EMA_DECAY, use_ema_warmup=True, power=0.8)
    losses = []
    parameters = sum(p.numel() for p in unet.parameters())
    print(f"{parameters} parameters, {time.time() - began:.0f} s for the data", flush=True)
    for step in range(1, steps + 1):
        x, classes = draw()
        # Times spread evenly over the schedule in each batch: less noise in the gradient.
        t = ((torch.arange(recipe.batch) + torch.rand(recipe.batch)) / recipe.batch * 1000).long()
        noise = torch.randn_like(x)
        predicted = unet(scheduler.add_noise(x, noise, t), t, classes).sample
        snr = compute_snr(scheduler, t)
        # min(snr, 5) as the weight of the error in x_0, which is 1 / snr times that in the noise, and 1 / (snr + 1)
        # times that in v.
        if recipe.prediction == "epsilon":
            target, weight = noise, snr.clamp(max=MIN_SNR) / snr
        else:
            target, weight = scheduler.get_velocity(x, noise, t), snr.clamp(max=MIN_SNR) / (snr + 1)
        loss = (weight * (predicted - target).square().mean(dim=(1, 2, 3))).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        average.step(unet.parameters())
        losses.append(loss.item())
        if step % 100 == 0:
            print(
                f"{step}/{steps} loss {np.mean(losses[-100:]):.4f} {time.time() - began:.0f} s, "
                f"{time.process_time() - busy:.0f} s of them computing",
                flush=True,
            )
        if step % 500 == 0 or step == steps:
            save(recipe, unet, average, scheduler, out)


def save(recipe: Recipe, unet: UNet2DModel, average: EMAModel, scheduler: DDPMScheduler, out: Path) -> None:
    saved = new_unet(recipe)
    saved.load_state_dict(unet.state_dict())
    average.copy_to(saved.parameters())
    pipeline = DDPMPipeline(saved.half(), scheduler)
    if recipe.classes:
        pipeline.register_to_config(id2label=dict(enumerate(recipe.classes)))
    pipeline.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--work", type=Path, default=Path("build"))
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.name]
    train(recipe, arguments.work / arguments.name, arguments.steps or recipe.steps)


if __name__ == "__main__":
    main()
