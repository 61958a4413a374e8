"""Where the images of a labelling project come from: a model with prompts, or files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tastemaker.data.captioned_images import load_captioned
from tastemaker.data.tables import checked_text
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sampler import LocalSampler
from tastemaker.diffusion.sde import make_sde
from tastemaker.diffusion.sde_types import SdeType
from tastemaker.errors import DataError
from tastemaker.evaluation.evaluate import generate
from tastemaker.evaluation.images import to_pil
from tastemaker.labelling.project import NewImage, NewTask
from tastemaker.labelling.settings import Labelling
from tastemaker.models.adapter_files import find_adapter
from tastemaker.types import Draw

LISTING = "samples.json"
"""The list of images that `tastemaker sample` and runs leave beside them."""


@dataclass(frozen=True)
class Recipe:
    """How images are sampled."""

    steps: int = 50
    guidance: float = 5.0
    eta: float = 1.0
    seed: int = 0
    batch: int = 16
    sde_type: SdeType = "auto"


@dataclass(frozen=True)
class Policy:
    """A model with an adapter, or without."""

    name: str
    """What it is called; never shown to labelers."""
    adapter: Path | None = None
    """The folder or file of its adapter; None for the model as it is."""


def sampled_tasks(
    model: Model,
    prompts: Sequence[str],
    settings: Labelling,
    tasks: int,
    recipe: Recipe,
    policies: Sequence[Policy],
    origin: dict[str, Any] | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> Iterator[NewTask]:
    """`tasks` tasks with images of a model, sampled as they are asked for; prompts in turn.

    A prompt that comes again gets further images. The images of a task are made by the `policies` in turn, the first
    ones where there are more than images. `origin` is what else is written down of how they were made. `advance` is
    called with the number of images after each batch. Raises a TastemakerError where an adapter does not fit.
    """
    sampler = LocalSampler(model, make_sde(model, recipe.steps, recipe.eta, recipe.sde_type))
    size = settings.task_size
    at_once = max(1, recipe.batch // size)
    for start in range(0, tasks, at_once):
        chosen = range(start, min(start + at_once, tasks))
        rows = [(task % len(prompts), task // len(prompts) * size + index) for task in chosen for index in range(size)]
        how: dict[str, Any] = {
            "steps": recipe.steps, "guidance": recipe.guidance, "eta": recipe.eta, "sde_type": recipe.sde_type,
            "seed": recipe.seed,
        }  # fmt: skip
        if model.negative_prompt:
            how["negative_prompt"] = model.negative_prompt
        if model.embedded_guidance is not None:
            how["embedded_guidance"] = model.embedded_guidance
        images: dict[int, NewImage] = {}
        for number, policy in enumerate(policies[:size]):
            own = [place for place in range(len(rows)) if place % size % min(len(policies), size) == number]
            draw = Draw(
                recipe.seed, 0, tuple(prompts[rows[place][0]] for place in own),
                tuple(rows[place][0] for place in own), tuple(rows[place][1] for place in own),
            )  # fmt: skip
            with nullcontext() if policy.adapter is None else model.weights.loaded(find_adapter(policy.adapter)):
                made = generate(model, sampler, draw, guidance=recipe.guidance, batch=recipe.batch).images
            for place, image in zip(own, to_pil(made), strict=True):
                prompt, sample = prompts[rows[place][0]], rows[place][1]
                about = {**(origin or {}), **how, "sample": sample}
                images[place] = NewImage(image, policy.name, about, f"image {sample} of {prompt!r}")
        for index, _ in enumerate(chosen):
            first = index * size
            yield NewTask(prompts[rows[first][0]], [images[place] for place in range(first, first + size)])
        advance(len(rows))


def image_tasks(source: str, settings: Labelling, limit: int | None = None) -> tuple[list[NewTask], int]:
    """Tasks out of images with captions, and how many images were left over.

    `source` is what `data.captioned_images.load_captioned` takes, or a folder with a samples.json. Images of one prompt
    make tasks of K in their order; fewer than K at the end of a prompt are left over. `limit` is the most tasks. Raises
    DataError where no prompt has K images.
    """
    groups: dict[str, list[NewImage]] = {}
    count = 0
    for prompt, image in captioned_images(source):
        groups.setdefault(prompt, []).append(image)
        count += 1
    size = settings.task_size
    tasks = [
        NewTask(prompt, images[start : start + size])
        for prompt, images in groups.items()
        for start in range(0, len(images) - size + 1, size)
    ]
    if not tasks:
        most = max(len(images) for images in groups.values())
        raise DataError(
            f"{source}: a task has {size} images of one prompt, but no prompt has more than {most}: give more images "
            "of each prompt, or ask for fewer a task"
        )
    tasks = tasks[:limit]
    return tasks, count - size * len(tasks)


def captioned_images(source: str) -> Iterable[tuple[str, NewImage]]:
    """Images with their prompts, in their order.

    `origin` has the seed where a samples.json says it. Raises DataError.
    """
    listing = Path(source).expanduser() / LISTING
    if listing.is_file():
        return _listed(listing)
    found = load_captioned(source)
    name = Path(source).name or source
    return [
        (found.captions[index], NewImage(found.source(index), name, {"source": found.where(index)}, found.where(index)))
        for index in range(len(found))
    ]


def _listed(listing: Path) -> list[tuple[str, NewImage]]:
    """The images of `tastemaker sample`, or of a round or evaluation of a run."""
    try:
        content = json.loads(listing.read_text(encoding="utf-8"))
        rows = content["samples"] if isinstance(content, dict) else content
        found = []
        for number, row in enumerate(rows):
            where = f"{listing}, row {number}"
            file = listing.parent / Path(row["file"]).name
            prompt = checked_text(row["prompt"], where, "prompt")
            found.append(
                (prompt, NewImage(file, listing.parent.name, {"source": where, "seed": row.get("seed")}, where))
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{listing} is no list of samples: {type(error).__name__}: {error}") from error
    if not found:
        raise DataError(f"{listing} lists no images")
    return found
