"""Comparisons of images for tests of reward models: flat colours, of which brighter ones are better."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from label_projects import add_user, claimed, judged
from tastemaker.labelling.project import NewImage, NewTask, add_tasks, create_project
from tastemaker.labelling.settings import Labelling
from tastemaker.reward_models.comparisons import Comparisons, ImageSource, Pair, Task
from tastemaker.reward_models.settings import Training
from tastemaker.reward_models.train import Result, train_reward_model
from tastemaker.rewards.preferences.architecture import Architecture

PROMPTS = ("a red star", "a blue heart", "a green fish", "a black square")


def picture(brightness: float, side: int = 32, seed: int = 0) -> Image.Image:
    """A noisy image of this mean brightness in [0, 1]."""
    noise = np.random.default_rng(seed).normal(0, 12, (side, side, 3))
    return Image.fromarray(np.clip(255 * brightness + noise, 0, 255).astype(np.uint8))


def comparisons(tasks: int = 16, size: int = 3, side: int = 32, validation: int = 4, seed: int = 0) -> Comparisons:
    """Tasks whose pairs all prefer the brighter image; the first `validation` are set apart."""
    rng = random.Random(seed)
    images, made = [], []
    for number in range(tasks):
        levels = rng.sample([0.1, 0.3, 0.5, 0.7, 0.9], size)
        start = len(images)
        images += [ImageSource(picture(level, side, start + i), f"image {start + i}") for i, level in enumerate(levels)]
        pairs = tuple(
            Pair(a, b, float(levels[a] > levels[b])) for a in range(size) for b in range(a + 1, size)
        )  # fmt: skip
        made.append(Task(PROMPTS[number % len(PROMPTS)], tuple(range(start, start + size)), pairs, number < validation))
    facts = {"tasks": tasks, "pairs": sum(len(task.pairs) for task in made), "ties": 0, "images": len(images),
             "prompts": len(PROMPTS)}  # fmt: skip
    return Comparisons("made up", tuple(made), tuple(images), "0" * 64, facts)


def quick(**changes) -> Training:
    """Settings of a training of a second or two."""
    return replace(Training(epochs=3, curve=(), lr=3e-3), **changes)


def trained(out: Path, architecture: Architecture | None = None, training: Training | None = None) -> Result:
    """A small reward model in the folder `out`."""
    return train_reward_model(comparisons(), architecture or Architecture("head"), training or quick(), out)


def project(folder: Path, tasks: int = 12, side: int = 32, labelled: bool = True, utility=None, **settings) -> Path:
    """A labelling project of grey images, labelled by one labeler."""
    chosen = Labelling(**{"mode": "rank", "images": 3, "confirm": False, "validation": 0.3, **settings})
    with create_project(folder, chosen) as made:
        rng = random.Random(0)
        add_tasks(
            made,
            [
                NewTask(
                    f"{PROMPTS[number % 4]} {number // 4}",
                    [NewImage(picture(rng.random(), side, 10 * number + i)) for i in range(chosen.task_size)],
                )
                for number in range(tasks)
            ],
        )
        if labelled:
            user = add_user(made, "ann")
            for assigned in claimed(made, user, 20, 0.0):
                judged(made, user, assigned, 0.0, utility or (lambda image: -image))
    return folder


def table(folder: Path, rows: list[dict]) -> Path:
    """A pairs.jsonl whose images are there."""
    folder.mkdir(exist_ok=True)
    for row in rows:
        for name in ("image_0", "image_1"):
            picture(0.5, seed=len(row[name])).save(folder / row[name])
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
