"""Labelling tasks with drawings of the bundled model's world, some of which show their prompt better than others."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from tastemaker.drawings.draw import render
from tastemaker.drawings.scene import COLOURS, KINDS, Scene, sample_scene
from tastemaker.labelling.project import NewImage, NewTask, Project, add_tasks, create_project
from tastemaker.labelling.settings import Labelling


def drawn_project(folder: Path, settings: Labelling, tasks: int = 4, size: int = 64, seed: int = 0) -> Project:
    """A new project with drawn tasks, whose images have `size` x `size` pixels."""
    project = create_project(folder, settings)
    add_tasks(project, drawn_tasks(settings, tasks, size, seed))
    return project


def drawn_tasks(settings: Labelling, tasks: int, size: int = 64, seed: int = 0) -> list[NewTask]:
    """Tasks with prompts of the bundled world. Their first image shows the prompt, others have faults."""
    rng = random.Random(seed)
    found = []
    for _ in range(tasks):
        scene, request = sample_scene(rng)
        scenes = [_with_faults(scene, count, rng) for count in range(settings.task_size)]
        found.append(NewTask(request.caption(), [NewImage(render(one, size, rng), "drawings") for one in scenes]))
    return found


def _with_faults(scene: Scene, count: int, rng: random.Random) -> Scene:
    """The scene drawn anew, with `count` things wrong."""
    things = [
        replace(thing, x=thing.x + rng.uniform(-0.04, 0.04), y=thing.y + rng.uniform(-0.04, 0.04))
        for thing in scene.things
    ]
    for fault in rng.choices(("kind", "colour", "texture"), k=count):
        at = rng.randrange(len(things))
        change = {"kind": rng.choice(KINDS), "colour": rng.choice(list(COLOURS)), "texture": "striped"}[fault]
        things[at] = replace(things[at], **{fault: change})
    return replace(scene, things=tuple(things))
