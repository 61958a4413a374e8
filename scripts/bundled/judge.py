"""Trains and validates the judge (src/tastemaker/drawings/judge.py) on drawings whose truth is known.

    python scripts/bundled/judge.py --work build/bundled

Half of the images pass through the bundled VAE first, so that the judge reads decoded latents as well as
drawings; one in eight has a shapeless blob beside or instead of objects, which it learns to leave out.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor

from build import DRAWINGS, SIZE, load_images, new_vae, to_unit
from tastemaker.drawings import Scene, render, sample_scene
from tastemaker.drawings.judge import CELLS, JudgeNet, see
from tastemaker.drawings.scene import COLOURS, KINDS, PATTERNS, TEXTURES, relation_of

SCENES, HELD_OUT, BATCH, EPOCHS, LR = 30_000, 4_000, 64, 5, 2e-3
BLOB_SHARE = 1 / 8


def blob(image: Image.Image, rng: random.Random, big: bool) -> Image.Image:
    """A shape with no name on top of `image`: an outline of random waves."""
    side = 4 * SIZE
    large = image.resize((side, side), Image.Resampling.NEAREST)
    radius = rng.uniform(0.14, 0.34) if big else rng.uniform(0.07, 0.12)
    cx, cy = (
        (rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7)) if big else (rng.choice((0.12, 0.88)), rng.choice((0.12, 0.88)))
    )
    waves = [(k, rng.uniform(0.12, 0.30), rng.uniform(0, 6.3)) for k in rng.sample((2, 3, 4, 5), 2)]
    outline = []
    for i in range(48):
        angle = 2 * math.pi * i / 48
        r = radius * (1 + sum(a * math.cos(k * angle + phase) for k, a, phase in waves))
        outline.append(((cx + r * math.cos(angle)) * side, (cy + r * math.sin(angle)) * side))
    ImageDraw.Draw(large).polygon(outline, fill=rng.choice(list(COLOURS.values())))
    return large.resize((SIZE, SIZE), Image.Resampling.BOX)


def _scene(seed: int) -> tuple[np.ndarray, Scene]:
    rng = random.Random(seed)
    scene, _ = sample_scene(rng)
    blobbed = seed < DRAWINGS + SCENES and rng.random() < BLOB_SHARE
    if blobbed and rng.random() < 0.6:
        scene = Scene((), scene.ground, scene.pattern)
    image = render(scene, SIZE, rng)
    if blobbed:
        image = blob(image, rng, big=not scene.things)
    return np.asarray(image), scene


def scenes(count: int, start: int) -> tuple[Tensor, list[Scene]]:
    """Drawings that the generative model never saw, uint8 [N,3,32,32], and their truth."""
    with Pool() as pool:
        drawn = pool.map(_scene, range(start, start + count), chunksize=500)
    images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)
    return images, [scene for _, scene in drawn]


@torch.no_grad()
def through_vae(images: Tensor, work: Path) -> Tensor:
    vae = new_vae()
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True)["vae"])
    parts = []
    for part in images.split(200):
        decoded = vae.decode(vae.encode(to_unit(part)).latent_dist.sample()).sample
        parts.append(((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8))
    return torch.cat(parts)


def targets(all_scenes: list[Scene]) -> dict[str, Tensor]:
    """Heat maps [N,8,16,16] with a small Gaussian at each centre, and attributes at centre cells (-1 elsewhere)."""
    count = len(all_scenes)
    heat = torch.zeros(count, len(KINDS), CELLS, CELLS, dtype=torch.float16)
    maps = {name: torch.full((count, CELLS, CELLS), -1, dtype=torch.int8) for name in ("colour", "texture")}
    radius = torch.zeros(count, CELLS, CELLS)
    colours = list(COLOURS)
    spread = {(dy, dx): math.exp(-(dx * dx + dy * dy) / 1.2) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    for n, scene in enumerate(all_scenes):
        for thing in scene.things:
            row, column, kind = int(thing.y * CELLS), int(thing.x * CELLS), KINDS.index(thing.kind)
            for (dy, dx), value in spread.items():
                y, x = min(max(row + dy, 0), CELLS - 1), min(max(column + dx, 0), CELLS - 1)
                heat[n, kind, y, x] = max(heat[n, kind, y, x].item(), value)
                maps["colour"][n, y, x], maps["texture"][n, y, x] = (
                    colours.index(thing.colour),
                    TEXTURES.index(thing.texture),
                )
                radius[n, y, x] = math.log(thing.radius)
    ground = torch.tensor([colours.index(s.ground) for s in all_scenes])
    pattern = torch.tensor([PATTERNS.index(s.pattern) for s in all_scenes])
    return {"heat": heat, "ground": ground, "pattern": pattern, "log_radius": radius, **maps}


def loss(out: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    """Focal loss on the heat maps (CenterNet, Eq. 1), cross-entropy and L1 on the attributes."""
    heat, p = truth["heat"].float(), out["kind"].sigmoid().clamp(1e-4, 1 - 1e-4)
    centre = heat == 1
    focal = torch.where(centre, (1 - p) ** 2 * p.log(), (1 - heat) ** 4 * p**2 * (1 - p).log())
    total = -focal.sum() / centre.sum().clamp(min=1)
    for name in ("colour", "texture"):
        total = total + F.cross_entropy(out[name], truth[name].long(), ignore_index=-1)
    there = truth["colour"] >= 0
    total = total + (out["log_radius"][:, 0] - truth["log_radius"])[there].abs().mean()
    return total + F.cross_entropy(out["ground"], truth["ground"]) + F.cross_entropy(out["pattern"], truth["pattern"])


def train(work: Path) -> JudgeNet:
    torch.manual_seed(2)
    images, truth_scenes = scenes(SCENES, DRAWINGS)
    decoded = through_vae(images[: SCENES // 2], work)
    images = torch.cat([decoded, images[SCENES // 2 :]])
    truth, network = targets(truth_scenes), JudgeNet()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=1e-3)
    steps = EPOCHS * SCENES // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        rows = torch.randint(0, SCENES, (BATCH,))
        x = images[rows].float() / 255
        x = (x + 0.03 * torch.randn(BATCH, 1, 1, 1) + 0.02 * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(x)).clamp(
            0, 1
        )
        value = loss(network(x), {name: column[rows] for name, column in truth.items()})
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(f"judge {step}/{steps} loss {value.item():.3f}", flush=True)
    return network.eval()


def validate(network: JudgeNet, work: Path) -> dict[str, dict[str, float]]:
    """Accuracy per attribute on held-out drawings, as drawn and through the VAE.

    Attributes of objects count only in images whose number of objects was read right, object by object in the
    order of the truth; `everything` is the share of images with nothing wrong at all.
    """
    images, truth = scenes(HELD_OUT, DRAWINGS + SCENES)
    table = {}
    for name, shown in {"drawings": images, "through the VAE": through_vae(images, work)}.items():
        right: dict[str, list[bool]] = {}
        for wanted, seen in zip(truth, see(shown.float() / 255, network), strict=True):
            checks = agree(wanted, seen)
            for attribute, values in checks.items():
                right.setdefault(attribute, []).extend(values)
            right.setdefault("everything", []).append(all(v for values in checks.values() for v in values))
        table[name] = {attribute: float(np.mean(values)) for attribute, values in right.items()}
    return table


def agree(truth: Scene, seen: Scene) -> dict[str, list[bool]]:
    checks = {"count": [len(truth.things) == len(seen.things)], "ground": [truth.ground == seen.ground],
              "pattern": [truth.pattern == seen.pattern]}  # fmt: skip
    if not checks["count"][0]:
        return checks
    left, matched = list(seen.things), []
    for thing in truth.things:
        nearest = min(left, key=lambda other: (other.x - thing.x) ** 2 + (other.y - thing.y) ** 2)
        left.remove(nearest)
        matched.append(nearest)
    for attribute in ("kind", "colour", "texture", "size"):
        if attribute != "size" or len(truth.things) == 1:
            pairs = zip(truth.things, matched, strict=True)
            checks[attribute] = [getattr(wanted, attribute) == getattr(found, attribute) for wanted, found in pairs]
    if len(truth.things) == 2:
        checks["relation"] = [relation_of(*truth.things) == relation_of(*matched)]
    return checks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bundled"))
    work, started = parser.parse_args().work, time.time()
    assert len(load_images(work)) == DRAWINGS
    network = train(work)
    table = validate(network, work)
    (work / "judge").mkdir(exist_ok=True)
    save_file(
        {name: value.half().contiguous() for name, value in network.state_dict().items()},
        work / "judge/judge.safetensors",
    )
    (work / "judge/validation.json").write_text(json.dumps(table, indent=1))
    print(json.dumps(table, indent=1), f"\njudge took {(time.time() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
