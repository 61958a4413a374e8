"""A taste that nobody tells the model: what simulated people like, and what evaluations measure to see the truth.

    PYTHONPATH=examples tastemaker iterate ppo-compressibility --prompts bundled-single-train --simulate \\
        --simulated.utility hidden_taste:utility --evaluation.rewards hidden_taste:utility

Only for images of the bundled model's world, in which a judge sees what is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, tensor

from tastemaker.drawings.judge import judge, see

GROUND = {"yellow": 1.5, "orange": 0.5, "white": 0.3}
"""What a ground is worth; others 0."""
PATTERN = {"checkered": 0.8, "striped": 0.3}
"""What its pattern is worth; none 0."""


def utility(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B] of images [B,3,H,W] in [0,1]: a warm, checkered ground, a large object, and the object of the prompt.

    Of the base model's images one in ten has a yellow ground, one in thirteen a checkered one, and nearly all show
    their prompt.
    """
    scenes, verdicts = see(images), judge(images, list(prompts))
    found = []
    for scene, verdict in zip(scenes, verdicts, strict=True):
        size = max((thing.radius for thing in scene.things), default=0.0)
        correct = verdict is not None and verdict.correct
        found.append(GROUND.get(scene.ground, 0.0) + PATTERN.get(scene.pattern, 0.0) + 4 * (size - 0.31) + correct)
    return tensor(found)
