"""Trains and validates the JPEG surrogate (src/tastemaker/rewards/jpeg_surrogate.py) on true sizes.

    python scripts/bundled/jpeg_surrogate.py [--work build/jpeg_surrogate] [--runs FOLDER...] [--measure]

Images: drawings, the bundled model's samples, samples of finished runs on it (--runs), photographs of scikit-image,
patterns, and all of these changed at random. Then twice: images that climb the network itself, up and down, join
them with their true sizes, and it is trained again. Every third run, two photographs and other seeds are held out.
--measure only measures the network that ships. One core: about 14 minutes with 26 runs, 4 of them for their samples,
which stay in --work; the outcome is a function of the seeds, of the runs and of torch's version.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from skimage import data
from torch import Tensor

from build import DRAWINGS, SIZE
from tastemaker.data.prompts import load_prompts
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sde import ddim
from tastemaker.drawings import render, sample_scene
from tastemaker.evaluation.images import images
from tastemaker.models import load_model
from tastemaker.models.adapter_files import find_adapter
from tastemaker.rewards.jpeg import jpeg_kilobytes
from tastemaker.rewards.jpeg_surrogate import WEIGHTS, SizeNet, load_surrogate
from tastemaker.types import Draw

LIST, STEPS, GUIDANCE, ETA = "bundled-pair", 20, 5.0, 1.0
FIRST, AGAIN, REFRESHES, BATCH, LR = 400, 150, 2, 64, 3e-3
BYTES = 10.0
"""Errors above this many bytes count linearly (Huber)."""
HELD_OUT_START = DRAWINGS + 100_000
"""Seeds of drawings from here on are seen by neither the model, the judge nor this network."""


def drawings(count: int, start: int, size: int = SIZE) -> Tensor:
    """[N,3,size,size] in [0,1]."""
    drawn = []
    for seed in range(start, start + count):
        rng = random.Random(seed)
        drawn.append(np.asarray(render(sample_scene(rng)[0], size, rng)))
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


def samples(model: Model, count: int, seed: int) -> Tensor:
    """[N,3,32,32] of a model for prompts of a list, each once or more."""
    prompts = load_prompts(LIST).prompts
    places = tuple(random.Random(seed).choices(range(len(prompts)), k=count))
    draw = Draw(seed, 0, tuple(prompts[p] for p in places), places, tuple(range(count)))
    return images(model, draw, ddim(model.process.grid(STEPS), ETA), GUIDANCE, batch=64)


def kept(file: Path, make: Callable[[], Tensor]) -> Tensor:
    """What is in `file`, or else is made now and put there."""
    if not file.is_file():
        save_file({"x": make().contiguous()}, file)
    return load_file(file)["x"]


def of_runs(runs: Sequence[Path], count: int, seed: int, work: Path) -> dict[str, Tensor]:
    """Samples by name of those runs that are finished and on the bundled model."""
    made = {}
    for run in sorted(runs):
        if not (run / "config.yaml").is_file() or not (run / "adapter").is_dir():
            continue
        # Read as it stands: a run of an older version may have settings that are no more.
        if yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")).get("model") != "bundled":
            continue

        def make(run: Path = run) -> Tensor:
            model = load_model("bundled")
            model.weights.load(find_adapter(run))
            return samples(model, count, seed)

        name = f"{run.parent.name}/{run.name}"
        made[name] = kept(work / f"{name.replace('/', '-')}.safetensors", make)
        print(f"{name}: {jpeg_kilobytes(made[name]).mean():.3f} kB", flush=True)
    return made


def photographs(names: Sequence[str], count: int, side: int, seed: int) -> Tensor:
    """[N,3,side,side] pieces of scikit-image's photographs, two in five as they are, the others at scales to 1/8."""
    rng, pieces = random.Random(seed), []
    whole = {name: torch.from_numpy(getattr(data, name)()).permute(2, 0, 1).float() / 255 for name in names}
    for _ in range(count):
        photo = whole[rng.choice(names)]
        wide = min(round(side * 2 ** max(0, rng.uniform(-2, 3))), *photo.shape[1:])
        top, left = (rng.randint(0, full - wide) for full in photo.shape[1:])
        piece = photo[None, :, top : top + wide, left : left + wide]
        pieces.append(F.interpolate(piece, (side, side), mode="area"))
    return torch.cat(pieces)


def patterns(count: int, seed: int) -> Tensor:
    """[N,3,32,32]: smooth fields, gratings of any frequency, and noise, each from faint to full contrast."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(shape, generator=g)  # noqa: E731
    grid, parts = torch.arange(SIZE).float(), []
    for index in range(count):
        if index % 3 == 0:
            cells = int(2 + 14 * draw(1))
            field = F.interpolate(draw(1, 3, cells, cells), (SIZE, SIZE), mode="bicubic")[0]
        elif index % 3 == 1:
            fx, fy = math.pi * draw(2)
            field = 0.5 + 0.5 * torch.sin(fx * grid + fy * grid[:, None] + 6.3 * draw(3, 1, 1))
        else:
            field = draw(3, SIZE, SIZE) if draw(1) < 0.5 else draw(1, SIZE, SIZE).expand(3, -1, -1)
        parts.append((draw(3, 1, 1) + (field - 0.5) * 2 * draw(1) ** 2).clamp(0, 1))
    return torch.stack(parts)


def changed(x: Tensor, seed: int) -> Tensor:
    """Each image after one or two changes out of blur, contrast, colour, noise, chequers, and flattening."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(shape, generator=g)  # noqa: E731
    done = []
    for image in x:
        for _ in range(1 + int(2 * draw(1))):
            kind, much = int(6 * draw(1)), float(draw(1))
            if kind == 0:
                kernel = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * (0.3 + 1.5 * much) ** 2))
                kernel = torch.outer(kernel, kernel / kernel.sum() ** 2).expand(3, 1, -1, -1)
                image = F.conv2d(F.pad(image[None], (3, 3, 3, 3), mode="replicate"), kernel, groups=3)[0]
            elif kind == 1:
                image = image.mean() + (image - image.mean()) * 2 * much
            elif kind == 2:
                image = image * (0.5 + draw(3, 1, 1)) + 0.5 * (draw(3, 1, 1) - 0.5)
            elif kind == 3:
                shape = (3, SIZE, SIZE) if draw(1) < 0.5 else (1, SIZE, SIZE)
                image = image + 0.4 * much**3 * torch.randn(shape, generator=g)
            elif kind == 4:
                sign = (-1.0) ** (torch.arange(SIZE)[:, None] + torch.arange(SIZE) * int(2 * draw(1)))
                image = image + 0.5 * much**2 * sign * draw(3, 1, 1)
            else:
                top, left = (int(v) for v in SIZE * draw(2))
                bottom, right = top + int(4 + 28 * draw(1)), left + int(4 + 28 * draw(1))
                there = image[:, top:bottom, left:right]
                image = image.clone()
                image[:, top:bottom, left:right] = there.mean(dim=(1, 2), keepdim=True) + (1 - much) * (
                    there - there.mean(dim=(1, 2), keepdim=True)
                )
            image = image.clamp(0, 1)
        done.append(image)
    return torch.stack(done)


def climb(
    network: SizeNet, start: Tensor, sign: int, rate: float, moments: Sequence[int],
    show: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Images at some moments of an ascent (sign 1) or descent (-1) by Adam, moments one after the other.

    What moves is `start`: pixels, which are kept within [0,1], or what `show` makes an image of.
    """
    shown = []
    for part in start.split(BATCH):
        free = part.clone().requires_grad_()
        optimizer, stations = torch.optim.Adam([free], rate), []
        for step in range(1, max(moments) + 1):
            loss = -sign * network(show(free) if show else free).sum()
            (free.grad,) = torch.autograd.grad(loss, free)
            optimizer.step()
            with torch.no_grad():
                if show is None:
                    free.clamp_(0, 1)
                if step in moments:
                    stations.append((show(free) if show else free).clone())
        shown.append(torch.stack(stations))
    return torch.cat(shown, dim=1).flatten(0, 1).detach()


@cache
def _bundled() -> Model:
    return load_model("bundled")


def fit(network: SizeNet, x: Tensor, steps: int, rate: float, seed: int) -> None:
    """Trains on the true sizes; those of the images as a file has them, rounded to 256 levels."""
    g, true = torch.Generator().manual_seed(seed), jpeg_kilobytes(x)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rows = torch.randint(0, len(x), (BATCH,), generator=g)
        loss = F.huber_loss(1000 * network(x[rows]), 1000 * true[rows], delta=BYTES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}/{steps} loss {loss.item():.2f}", flush=True)


def train(work: Path, tuned: dict[str, Tensor]) -> SizeNet:
    torch.manual_seed(3)
    base = kept(work / "base.safetensors", lambda: samples(_bundled(), 768, seed=11))
    photos = photographs(("astronaut", "rocket"), 800, SIZE, seed=12)
    plain = torch.cat([drawings(3000, HELD_OUT_START), base, *tuned.values(), photos, patterns(900, seed=13)])
    x, network = torch.cat([plain, changed(plain, seed=14)]), SizeNet()
    print(f"{len(x)} images", flush=True)
    fit(network, x, FIRST, LR, seed=15)
    for refresh in range(REFRESHES):
        g = torch.Generator().manual_seed(16 + refresh)
        start = x[torch.randint(0, len(x), (256,), generator=g)]
        new = [
            climb(network, part, sign, rate, (3, 10, 30))
            for part, (sign, rate) in zip(start.chunk(4), [(1, 0.03), (1, 0.004), (-1, 0.02), (-1, 0.004)], strict=True)
        ]
        for images_, way in zip(new, ("up", "slowly up", "down", "slowly down"), strict=True):
            print(f"refresh {refresh}, {way}: {figures(network, images_)}", flush=True)
        # Twice, so that they are a tenth of what is seen.
        x = torch.cat([x, *new, *new])
        fit(network, x, AGAIN, LR / 3, seed=20 + refresh)
    return network.eval()


@torch.no_grad()
def figures(network: SizeNet, x: Tensor) -> dict[str, float]:
    """Correlations with the true sizes, and errors and sizes in kB."""
    true, found = jpeg_kilobytes(x), torch.cat([network(part) for part in x.split(BATCH)])
    return {
        "images": len(x),
        "pearson": round(float(np.corrcoef(true, found)[0, 1]), 5),
        "spearman": round(float(spearmanr(true, found)[0]), 5),
        "rms": round((found - true).square().mean().sqrt().item(), 4),
        "bias": round((found - true).mean().item(), 4),
        "mean": round(true.mean().item(), 3),
        "least": round(true.min().item(), 3),
        "largest": round(true.max().item(), 3),
    }


def validate(network: SizeNet, work: Path, tuned: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Figures on what training did not see; images that climb start from the model's samples."""
    base = kept(work / "base-held-out.safetensors", lambda: samples(_bundled(), 256, seed=31))
    start = base[:128]
    latents = _bundled().encode_images(start)
    sets = {
        "drawings": drawings(1000, HELD_OUT_START + 50_000),
        "drawings 72x56": drawings(200, HELD_OUT_START + 60_000, size=72)[..., :56],
        "base samples": base,
        "base samples, changed": changed(base, seed=32),
        "fine-tuned samples": torch.cat([*tuned.values()]) if tuned else base[:0],
        "photographs 128x128": photographs(("chelsea", "coffee"), 100, 128, seed=33),
        "before climbing": start,
        "climbed up": climb(network, start, 1, 0.02, (60,)),
        "climbed down": climb(network, start, -1, 0.02, (60,)),
        "climbed up a little": climb(network, start, 1, 0.002, (20,)),
        "climbed down a little": climb(network, start, -1, 0.002, (20,)),
        "latents climbed up": climb(network, latents, 1, 0.05, (40,), _bundled().decode),
        "latents climbed down": climb(network, latents, -1, 0.05, (40,), _bundled().decode),
    }
    sets["climbed, all"] = torch.cat([x for name, x in sets.items() if "climb" in name])
    return {name: figures(network, x) for name, x in sets.items() if len(x)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/jpeg_surrogate"))
    parser.add_argument("--runs", type=Path, nargs="*", default=sorted(Path("build").glob("*/*")))
    parser.add_argument("--measure", action="store_true", help="trains nothing")
    arguments, started = parser.parse_args(), time.time()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    tuned = of_runs(arguments.runs, 48, 21, work)
    held_out = list(tuned)[::3]
    network = load_surrogate() if arguments.measure else train(
        work, {name: x for name, x in tuned.items() if name not in held_out}
    )  # fmt: skip
    if not arguments.measure:
        # As it ships: validation is of the rounded weights.
        weights = {name: value.detach().half().contiguous() for name, value in network.state_dict().items()}
        save_file(weights, work / WEIGHTS.name)
        network.load_state_dict({name: value.float() for name, value in weights.items()})
        network.requires_grad_(False)
    table = validate(network, work, {name: tuned[name] for name in held_out})
    result = {"held-out runs": held_out, "figures": table}
    print(json.dumps(result, indent=1), f"\ntook {(time.time() - started) / 60:.1f} minutes")
    (work / "validation.json").write_text(json.dumps(result, indent=1))
    if not arguments.measure:
        WEIGHTS.parent.mkdir(exist_ok=True)
        for name in (WEIGHTS.name, "validation.json"):
            shutil.copyfile(work / name, WEIGHTS.parent / name)


if __name__ == "__main__":
    main()
