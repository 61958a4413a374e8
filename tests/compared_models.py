"""Folders of images and comparisons of them, for tests."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from label_projects import add_user, claimed, judged
from tastemaker.cli.compared_models import images_of
from tastemaker.human_evaluation.create import create_comparison, rows_of
from tastemaker.human_evaluation.study import ComparedModel, Stopping, Study, asked, read_study
from tastemaker.labelling.answers import read_tasks
from tastemaker.labelling.project import open_project
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.sources import Recipe
from tastemaker.labelling.tables import Assignment

SIDE = 16


def flat(value: int) -> Image.Image:
    """An image of one colour, another for each value, which PNG compresses to almost nothing."""
    return Image.new("RGB", (SIDE, SIDE), (value % 256, value // 256, 0))


def noise(value: int) -> Image.Image:
    """An image that PNG cannot compress, another for each value."""
    pixels = np.random.default_rng(value).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def image_folder(
    folder: Path, draw: Callable[[int], Image.Image], prompts: int, seeds: int = 1, start: int = 0
) -> ComparedModel:
    """A folder as `tastemaker sample` writes it, whose images are drawn of start, start + 1, ..."""
    folder.mkdir()
    listing = []
    for index in range(prompts * seeds):
        name = f"{index:03d}.png"
        draw(start + index).save(folder / name)
        listing.append({"file": name, "prompt": f"prompt {index // seeds}", "seed": index % seeds})
    (folder / "samples.json").write_text(json.dumps(listing))
    return ComparedModel(folder.name, str(folder))


def compared(
    folder: Path,
    models: Sequence[ComparedModel],
    mode: str = "pair",
    questions: Sequence[str] = ("fidelity", "alignment"),
    stopping: Stopping | None = None,
    seed: int = 0,
    **settings,
) -> Study:
    """A comparison of image folders, which is the same for the same seed."""
    candidates = [images_of(model) for model in models]
    rows = rows_of(candidates, None, None)
    images = 2 if mode == "pair" else len(models)
    options = {"ties": False, "both_bad": False, "skip": False, "validation": 0.0, **settings}
    return create_comparison(
        folder, Labelling(mode, images, **options), candidates, rows, asked(questions, mode), stopping or Stopping(),
        Recipe(), dice=random.Random(seed),
    )  # fmt: skip


def answer(folder: Path, labelers: Mapping[str, Callable[[int, str, int], float]], most: int = 10**6) -> int:
    """Lets labelers answer up to `most` tasks each, by how they like (model, question, task); returns how many."""
    study, done = read_study(folder), 0
    by_number = {task.number: task for task in study.tasks}
    with open_project(folder) as project:
        with project.database.read() as session:
            numbers = {task.id: task.number for task in read_tasks(session).values()}
        for name, liking in labelers.items():
            user = add_user(project, name)
            for _ in range(most):
                found = claimed(project, user, 1, float(done))
                if not found:
                    break
                with project.database.read() as session:
                    assignment = session.get(Assignment, found[0].id)
                    assert assignment is not None
                    task = by_number[numbers[assignment.task_id]]
                question = study.questions[task.question].name
                judged(
                    project, user, found[0], float(done),
                    lambda p, task=task, q=question, like=liking: like(task.models[p], q, task.number),
                )  # fmt: skip
                done += 1
    return done
