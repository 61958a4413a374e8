"""Images on disk: fixed grids of a run, contact sheets, and `tastemaker sample`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from tastemaker.config.schema import Sampling
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sampler import LocalSampler
from tastemaker.diffusion.sde import Sde, make_sde
from tastemaker.evaluation.evaluate import generate
from tastemaker.evaluation.model_settings import set_up
from tastemaker.rewards.jpeg import to_bytes
from tastemaker.types import Draw

DEFAULTS = Sampling()


def images(model: Model, draw: Draw, sde: Sde, guidance: float, batch: int) -> Tensor:
    """Images [B,3,H,W] in [0,1] on the CPU for a draw."""
    return generate(model, LocalSampler(model, sde), draw, guidance=guidance, batch=batch).images


def to_pil(x: Tensor) -> list[Image.Image]:
    """Images [B,3,H,W] in [0,1] as PIL images."""
    return [Image.fromarray(image) for image in to_bytes(x).numpy()]


def contact_sheet(images: Sequence[Image.Image], columns: int, cell: int | None = None, gap: int = 4) -> Image.Image:
    """Images of one size in rows of `columns`, their longer side `cell` pixels; small ones without smoothing."""
    width, height = images[0].size
    cell = cell or max(96, width, height)
    across, down = round(cell * width / max(width, height)), round(cell * height / max(width, height))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (across + gap) - gap, rows * (down + gap) - gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        method = Image.Resampling.NEAREST if max(image.size) < cell else Image.Resampling.LANCZOS
        sheet.paste(image.resize((across, down), method), (column * (across + gap), row * (down + gap)))
    return sheet


def save_grid(
    run: Path, round: int, x: Tensor, draw: Draw, reward: Tensor, correct: Sequence[bool | None], kind: str = "round"
) -> None:
    """samples/round-NNNN of a run: the images, and samples.json with prompt, seed, reward and verdict of each.

    `kind` is another beginning of the folder's name, for images that the report's slider does not show.
    """
    final = run / f"samples/{kind}-{round:04d}"
    temporary = final.with_name(f".tmp-{final.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    entries = []
    for index, image in enumerate(to_pil(x)):
        name = f"{index:03d}.png"
        image.save(temporary / name)
        entries.append(
            {
                "file": name, "prompt": draw.prompts[index], "seed": draw.sample_index[index],
                "reward": reward[index].item(), "correct": correct[index],
            }
        )  # fmt: skip
    (temporary / "samples.json").write_text(
        json.dumps({"round": round, "samples": entries}, indent=1), encoding="utf-8"
    )
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)


def load_here(model: str, sampling: Sampling = DEFAULTS) -> Model:
    """The model on this machine's accelerator in half precision, or on the CPU, set up as the settings say.

    Raises ModelError.
    """
    from tastemaker.models import load_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_model(model, "fp32" if device == "cpu" else "fp16", device)
    set_up(loaded, sampling)
    return loaded


def fixed_draw(prompts: Sequence[str], n: int, seed: int) -> Draw:
    """`n` images of each prompt, one prompt after another."""
    rows = [(prompt, index) for prompt in range(len(prompts)) for index in range(n)]
    return Draw(seed, 0, tuple(prompts[p] for p, _ in rows), tuple(p for p, _ in rows), tuple(i for _, i in rows))


def write_samples(
    *,
    model: str,
    adapter: str | None,
    prompts: Sequence[str],
    n: int,
    seed: int,
    sampling: Sampling,
    out: Path,
) -> Path:
    """Samples `n` images of each prompt into a new folder, and returns the path of their contact sheet.

    Raises ConfigError where the folder is in use or the adapter missing, ModelError where the model does not load.
    """
    from tastemaker.models.adapter_files import find_adapter
    from tastemaker.runs.folders import new_folder

    found = find_adapter(adapter) if adapter else None
    loaded = load_here(model, sampling)
    if found:
        loaded.weights.load(found)
    draw = fixed_draw(prompts, n, seed)
    sde = make_sde(loaded, sampling.steps, sampling.eta, sampling.sde_type)
    x = images(loaded, draw, sde, sampling.guidance, batch=16)
    with new_folder(out) as folder:
        save_samples(folder, to_pil(x), draw.prompts, draw.prompt_index, draw.sample_index)
    return out / "sheet.png"


def save_samples(
    folder: Path,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    prompt_index: Sequence[int],
    seeds: Sequence[int],
) -> None:
    """B images with the prompt, its index and the seed of each: a file each, sheet.png and samples.json."""
    listing = [
        {"file": f"{index:03d}-{seed:02d}.png", "prompt": prompt, "seed": seed}
        for prompt, index, seed in zip(prompts, prompt_index, seeds, strict=True)
    ]
    for entry, image in zip(listing, images, strict=True):
        image.save(folder / entry["file"])
    contact_sheet(images, columns=max(seeds) + 1).save(folder / "sheet.png")
    (folder / "samples.json").write_text(json.dumps(listing, indent=1), encoding="utf-8")
