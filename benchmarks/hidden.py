"""The hidden utility of benchmarks/preference_loop.py as a reward, `hidden:utility`, which only evaluations see."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tastemaker.drawings.judge import judge, see

GROUND = {"yellow": 1.5, "orange": 0.5, "white": 0.3}
"""What a ground is worth; others 0."""
PATTERN = {"checkered": 0.8, "striped": 0.3}
"""What its pattern is worth; none 0."""


def utility(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """[B] of images [B,3,H,W] in [0,1] of the bundled model's world.

    A warm and checkered ground, a large object, and above all the object that the prompt asks for: of the base model's
    images one in ten has a yellow ground, one in fifteen a checkered one.
    """
    scenes, verdicts = see(images), judge(images, list(prompts))
    found = []
    for scene, verdict in zip(scenes, verdicts, strict=True):
        size = max((thing.radius for thing in scene.things), default=0.0)
        correct = verdict is not None and verdict.correct
        found.append(GROUND.get(scene.ground, 0.0) + PATTERN.get(scene.pattern, 0.0) + 4 * (size - 0.31) + correct)
    return torch.tensor(found)
