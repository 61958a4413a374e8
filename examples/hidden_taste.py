"""A taste that nobody tells the model: what simulated people like, and what evaluations measure to see the truth.

    PYTHONPATH=examples tastemaker iterate ppo-compressibility --prompts bundled-single-train --simulate \\
        --simulated.utility hidden_taste:utility --evaluation.rewards hidden_taste:utility

Only for images of the bundled model's world, in which a judge sees what is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, stack, tensor

from tastemaker.drawings.judge import judge, see

GROUND = {"yellow": 1.5, "orange": 0.5, "white": 0.3}
"""What a ground is worth; others 0."""
PATTERN = {"checkered": 0.8, "striped": 0.3}
"""What its pattern is worth; none 0."""


def parts(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """What the utility of images [B,3,H,W] in [0,1] is the sum of, each [B]: ground, pattern, size, prompt."""
    scenes, verdicts = see(images), judge(images, list(prompts))
    return {
        "ground": tensor([GROUND.get(scene.ground, 0.0) for scene in scenes]),
        "pattern": tensor([PATTERN.get(scene.pattern, 0.0) for scene in scenes]),
        "size": tensor([4 * (max((thing.radius for thing in scene.things), default=0.0) - 0.31) for scene in scenes]),
        "prompt": tensor([float(verdict is not None and verdict.correct) for verdict in verdicts]),
    }


def utility(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B] of images [B,3,H,W] in [0,1]: a warm, checkered ground, a large object, and the object of the prompt.

    Of the base model's images one in ten has a yellow ground, one in thirteen a checkered one, and nearly all show
    their prompt.
    """
    return stack(list(parts(images, prompts).values())).sum(dim=0)
