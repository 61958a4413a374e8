"""A taste that nobody tells the model: what simulated people like, and what evaluations measure to see the truth.

    PYTHONPATH=examples tastemaker iterate ppo-compressibility --prompts bundled-single-train --simulate \\
        --simulated.utility hidden_taste:utility --evaluation.rewards hidden_taste:utility

`utility` is only for images of the bundled model's world, in which a judge sees what is there; `warmth` is for any.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, stack, tensor, where

from tastemaker.drawings.judge import judge, see
from tastemaker.rewards.jpeg import jpeg_kilobytes

GROUND = {"yellow": 1.5, "orange": 0.5, "white": 0.3}
"""What a ground is worth; others 0."""


def parts(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """What the utility of images [B,3,H,W] in [0,1] is the sum of, each [B]: ground, detail, size, prompt.

    Detail and size are about 0 in the mean of the base model's images. An image without an object has no size; that
    its object is missing counts in `prompt`.
    """
    scenes, verdicts = see(images), judge(images, list(prompts))
    radii = [max((thing.radius for thing in scene.things), default=None) for scene in scenes]
    return {
        "ground": tensor([GROUND.get(scene.ground, 0.0) for scene in scenes]),
        "detail": 4 * (jpeg_kilobytes(images).cpu().float() - 1.16),
        "size": tensor([0.0 if radius is None else 4 * (radius - 0.31) for radius in radii]),
        "prompt": tensor([float(verdict is not None and verdict.correct) for verdict in verdicts]),
    }


def utility(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B] of images [B,3,H,W] in [0,1]: a warm ground, much detail, a large object, and the object of the prompt.

    Of the base model's images one in eight has a yellow ground, and nearly all show their prompt.
    """
    return stack(list(parts(images, prompts).values())).sum(dim=0)


def calm_on_yellow(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B] of images [B,3,H,W] in [0,1]: as `utility`, but detail counts 1.5, and -1.5 where the ground is yellow.

    Seven in eight of the base model's images have another ground. So its images mostly say that detail is liked, and
    a policy that learns to draw yellow grounds comes to where it is not.
    """
    found = parts(images, prompts)
    found["detail"] = found["detail"] * where(found["ground"] == GROUND["yellow"], -1.5, 1.5)
    return stack(list(found.values())).sum(dim=0)


def warmth(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B] of images [B,3,H,W] in [0,1]: how much more red they have than blue, in [-1,1]."""
    return (images[:, 0] - images[:, 2]).mean(dim=(1, 2))
