"""`tastemaker sample --adapter-steps`: what an adapter does in parts of the sampling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from tastemaker.config.schema import Sampling
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sampler import LocalSampler
from tastemaker.diffusion.sde import make_sde
from tastemaker.evaluation.evaluate import generate
from tastemaker.evaluation.image_grid import labelled_grid
from tastemaker.evaluation.images import contact_sheet, fixed_draw, load_here, to_pil
from tastemaker.models.adapter_files import find_adapter, require_adapter
from tastemaker.models.step_adapters import switched
from tastemaker.types import Draw


def write_ranges(
    *,
    model: str,
    adapter: str,
    masks: dict[str, tuple[bool, ...]],
    prompts: Sequence[str],
    n: int,
    seed: int,
    sampling: Sampling,
    folder: Path,
) -> None:
    """Samples `n` images of each prompt with the adapter on at the steps of each mask, by the masks' names.

    One mask gives images and their sheet. Several give folders of images, and a sheet whose rows are the base
    model, each mask, and the adapter at all steps; its columns are the images.
    """
    found = require_adapter(find_adapter(adapter))
    loaded = load_here(model, sampling)
    loaded.weights.load(found)
    draw = fixed_draw(prompts, n, seed)
    several = len(masks) > 1
    rows = {name: _masked(loaded, draw, mask, sampling) for name, mask in masks.items()}
    if several:
        steps = len(next(iter(masks.values())))
        whole = {"base": (False,) * steps, "all steps": (True,) * steps}
        base, full = (_masked(loaded, draw, mask, sampling) for mask in whole.values())
        rows = {"base": base, **{f"steps {name}": x for name, x in rows.items()}, "all steps": full}
    listing = []
    for name, x in rows.items():
        place = name.replace(" ", "-").replace(":", "-").replace(",", "+") if several else ""
        (folder / place).mkdir(exist_ok=True)
        for index, image in enumerate(to_pil(x)):
            file = Path(place) / f"{draw.prompt_index[index]:03d}-{draw.sample_index[index]:02d}.png"
            image.save(folder / file)
            entry = {"file": str(file), "prompt": draw.prompts[index], "seed": draw.sample_index[index]}
            listing.append(entry | {"adapter_steps": name.removeprefix("steps ")})
    images = [image for x in rows.values() for image in to_pil(x)]
    sheet = labelled_grid(images, list(rows)) if several else contact_sheet(images, columns=n)
    sheet.save(folder / "sheet.png")
    (folder / "samples.json").write_text(json.dumps(listing, indent=1), encoding="utf-8")


def _masked(model: Model, draw: Draw, mask: Sequence[bool], sampling: Sampling) -> Tensor:
    """[B,3,H,W]"""
    sde = make_sde(model, len(mask), sampling.eta, sampling.sde_type)
    sampler = LocalSampler(switched(model, sde, mask), sde)
    return generate(model, sampler, draw, guidance=sampling.guidance, batch=16).images
