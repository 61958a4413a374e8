"""Making a comparison: the images of all models for the same prompts and seeds, and tasks that do not say whose they
are.

Within a task, which model's image has which position is drawn by the system's random numbers and written to
`comparison.json` alone; so is the order of tasks. Image files have the same number of bytes, and no metadata.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from tastemaker.data.images import read_image
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sampler import LocalSampler
from tastemaker.diffusion.sde import make_sde
from tastemaker.errors import ConfigError, DataError
from tastemaker.evaluation.evaluate import generate
from tastemaker.evaluation.images import to_pil
from tastemaker.human_evaluation.study import (
    LEAST_MODELS,
    MOST_MODELS,
    ComparedModel,
    ComparedTask,
    Question,
    Stopping,
    Study,
    check_names,
    write_study,
)
from tastemaker.labelling.create import Advance, new_project
from tastemaker.labelling.project import NewImage, NewTask, add_tasks
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.sources import Recipe
from tastemaker.types import Draw

PROMPTS_TOGETHER = 10
"""Prompts of which one question is asked before the next: a question that changes with each task is overlooked."""
TASKS_TOGETHER = 16
"""Tasks that are stored in one transaction."""

Row = tuple[str, int]
"""A prompt with a seed, which counts the prompt's images from 0."""


@dataclass(frozen=True)
class FromModel:
    """Images to be sampled from a model."""

    model: ComparedModel
    load: Callable[[], Model]


@dataclass(frozen=True)
class FromImages:
    """Images that are there."""

    model: ComparedModel
    images: Mapping[Row, NewImage]


Candidate = FromModel | FromImages


@dataclass(frozen=True)
class Planned:
    """A task that is to be made."""

    row: int
    question: int
    models: tuple[int, ...]
    """By position."""


def rows_of(candidates: Sequence[Candidate], prompts: Sequence[str] | None, seeds: int | None) -> list[Row]:
    """The prompts and seeds that all models are compared on.

    Where some have images, those of their prompts and seeds that all of them have; `prompts` and `seeds` (the number of
    images of each prompt) select among these. Otherwise `seeds` images, 1 by default, of each of the prompts. Raises
    ConfigError, DataError.
    """
    given = [one for one in candidates if isinstance(one, FromImages)]
    if not given:
        if not prompts:
            raise ConfigError("give prompts for the models by --prompts")
        return [(prompt, seed) for prompt in dict.fromkeys(prompts) for seed in range(seeds or 1)]
    shared = [row for row in given[0].images if all(row in one.images for one in given[1:])]
    chosen = {prompt for prompt, _ in shared} if prompts is None else set(prompts)
    rows = [row for row in shared if row[0] in chosen and (seeds is None or row[1] < seeds)]
    if not rows:
        names = " and ".join(one.model.source for one in given)
        raise DataError(
            f"{names} have no images of the same prompts and seeds"
            + ("" if not shared else " among those that were chosen by --prompts and --n")
        )
    order = {prompt: index for index, prompt in enumerate(dict.fromkeys(row[0] for row in rows))}
    return sorted(rows, key=lambda row: (order[row[0]], row[1]))


def left_out(candidates: Sequence[Candidate], rows: Sequence[Row]) -> dict[str, int]:
    """How many images of each folder are not compared."""
    return {one.model.name: len(one.images) - len(rows) for one in candidates if isinstance(one, FromImages)}


def plan(rows: Sequence[Row], questions: int, models: int, mode: str, dice: random.Random) -> list[Planned]:
    """The tasks in the order in which they are handed out.

    Each prompt and seed comes with each question: in mode pair for each two models, else for all of them. Prompts come
    in a random order, PROMPTS_TOGETHER at a time with one question after the other.
    """
    by_prompt: dict[str, list[int]] = {}
    for index, (prompt, _) in enumerate(rows):
        by_prompt.setdefault(prompt, []).append(index)
    groups = list(combinations(range(models), 2)) if mode == "pair" else [tuple(range(models))]
    prompts = list(by_prompt.values())
    dice.shuffle(prompts)
    found = []
    for start in range(0, len(prompts), PROMPTS_TOGETHER):
        indices = [index for prompt in prompts[start : start + PROMPTS_TOGETHER] for index in prompt]
        for question in dice.sample(range(questions), questions):
            tasks = [(index, group) for index in indices for group in groups]
            dice.shuffle(tasks)
            found += [Planned(index, question, tuple(dice.sample(group, len(group)))) for index, group in tasks]
    return found


def check_models(models: Sequence[ComparedModel]) -> None:
    """Raises ConfigError where so many models cannot be compared, or two have the same name or source."""
    if not LEAST_MODELS <= len(models) <= MOST_MODELS:
        count = f"{len(models)} are" if len(models) != 1 else "one is"
        raise ConfigError(
            f"a comparison has {LEAST_MODELS} or {MOST_MODELS} models, but {count} given: name each as NAME=MODEL, "
            "NAME=RUN, NAME=ADAPTER or NAME=FOLDER"
        )
    check_names("model", [one.name for one in models])
    for one, two in combinations(models, 2):
        if one.source == two.source:
            raise ConfigError(f"{one.name} and {two.name} are both {one.source}: there is nothing to compare")


def check_mode(settings: Labelling, models: int) -> None:
    """Raises ConfigError where tasks of these settings cannot show so many models."""
    if settings.mode == "rate":
        raise ConfigError("models are compared in the modes pair, best and rank; rate shows one image at a time")
    if settings.mode != "pair" and settings.task_size != models:
        raise ConfigError(
            f"a task of mode {settings.mode} shows the images of all {models} models, not {settings.task_size}"
        )


def create_comparison(
    folder: Path,
    settings: Labelling,
    candidates: Sequence[Candidate],
    rows: Sequence[Row],
    questions: Sequence[Question],
    stopping: Stopping,
    recipe: Recipe,
    *,
    size: tuple[int, int] | None = None,
    database: str | None = None,
    advance: Advance = lambda images: None,
    dice: random.Random | None = None,
) -> Study:
    """A new labelling project in which the models are compared on prompts and seeds.

    `size` is the width and height that images are scaled to. `advance` is called with the number of images that are
    made or read. `dice` is for tests: by default the system's random numbers, which nobody can draw again. The folder
    is there when all is made, and not before. Raises ConfigError, DataError, ModelError, StorageError.
    """
    check_models([one.model for one in candidates])
    check_mode(settings, len(candidates))
    dice = dice or random.SystemRandom()
    planned = plan(rows, len(questions), len(candidates), settings.mode, dice)
    with new_project(folder, settings, database) as project:
        with TemporaryDirectory(dir=project.folder) as scratch:
            values = [
                list(_images(one, rows, recipe, Path(scratch), f"{index}", advance))
                for index, one in enumerate(candidates)
            ]
            check_distinct([one.model.name for one in candidates], rows, values, size)
            for start in range(0, len(planned), TASKS_TOGETHER):
                tasks = [
                    _task(candidates, rows, values, questions, one, size)
                    for one in planned[start : start + TASKS_TOGETHER]
                ]
                add_tasks(project, tasks, compressed=False)
        study = Study(
            project.uuid, tuple(one.model for one in candidates), tuple(questions),
            tuple(
                ComparedTask(number, one.question, rows[one.row][1], one.models) for number, one in enumerate(planned)
            ),
            stopping, _sampling(candidates, recipe),
        )  # fmt: skip
        write_study(project.folder, study)
    return study


def check_distinct(
    names: Sequence[str], rows: Sequence[Row], values: Sequence[Sequence[NewImage]], size: tuple[int, int] | None
) -> None:
    """Raises DataError where images of a prompt and seed differ in size, or two models' images are all the same."""
    different = dict.fromkeys(combinations(range(len(names)), 2), False)
    for index, (prompt, seed) in enumerate(rows):
        images = [opened(one[index], size) for one in values]
        for model, image in enumerate(images[1:], 1):
            if image.size != images[0].size:
                shapes = [f"{one.width} x {one.height}" for one in (images[0], image)]
                raise DataError(
                    f"the size would say whose image it is: of the prompt {prompt[:60]!r}, seed {seed}, {names[0]} has "
                    f"{shapes[0]} pixels and {names[model]} {shapes[1]}; scale all by --height and --width"
                )
        data = [image.tobytes() for image in images]
        for one, two in different:
            different[one, two] |= data[one] != data[two]
    for (one, two), differ in different.items():
        if not differ:
            raise DataError(
                f"the images of {names[one]} and {names[two]} are the same for all prompts and seeds: there is nothing "
                "to compare"
            )


def opened(image: NewImage, size: tuple[int, int] | None) -> Image.Image:
    """An image of a model, scaled to width and height where they are given. Raises DataError."""
    found = read_image(image.value, image.where)
    return found if size is None or found.size == size else found.resize(size, Image.Resampling.LANCZOS)


def _task(
    candidates: Sequence[Candidate],
    rows: Sequence[Row],
    values: Sequence[Sequence[NewImage]],
    questions: Sequence[Question],
    planned: Planned,
    size: tuple[int, int] | None,
) -> NewTask:
    # Neither model nor origin: whoever reads the database learns no more than whoever labels.
    images = [
        NewImage(opened(values[model][planned.row], size), where=values[model][planned.row].where)
        for model in planned.models
    ]
    return NewTask(rows[planned.row][0], images, question=questions[planned.question].text)


def _images(
    candidate: Candidate, rows: Sequence[Row], recipe: Recipe, folder: Path, prefix: str, advance: Advance
) -> Iterator[NewImage]:
    if isinstance(candidate, FromImages):
        for row in rows:
            yield candidate.images[row]
        advance(len(rows))
        return
    model = candidate.load()
    numbers = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in rows))}
    sampler = LocalSampler(model, make_sde(model, recipe.steps, recipe.eta, recipe.sde_type))
    for start in range(0, len(rows), recipe.batch):
        part = rows[start : start + recipe.batch]
        draw = Draw(
            recipe.seed, 0, tuple(prompt for prompt, _ in part), tuple(numbers[prompt] for prompt, _ in part),
            tuple(seed for _, seed in part),
        )  # fmt: skip
        made = to_pil(generate(model, sampler, draw, guidance=recipe.guidance, batch=recipe.batch).images)
        for offset, (image, (prompt, seed)) in enumerate(zip(made, part, strict=True)):
            path = folder / f"{prefix}-{start + offset}.png"  # many images of large models exceed the memory
            image.save(path, compress_level=1)
            yield NewImage(path, where=f"image {seed} of {prompt[:60]!r} by {candidate.model.name}")
        advance(len(part))


def _sampling(candidates: Sequence[Candidate], recipe: Recipe) -> dict[str, Any]:
    if not any(isinstance(one, FromModel) for one in candidates):
        return {}
    return asdict(recipe)
