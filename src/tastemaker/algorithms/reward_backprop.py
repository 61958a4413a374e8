"""What methods that follow a reward's own gradient have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tastemaker.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator
    from torch import Tensor

    from tastemaker.algorithms.base import Task
    from tastemaker.diffusion.backprop import Chain
    from tastemaker.diffusion.losses import Objective
    from tastemaker.types import Cond, Draw, Metrics, Rollout, Rows

MIXING = 0.93
"""p of EDICT's paper and its public code."""

Checkpointing = Literal["block", "step", "edict", "none"]
"""What is made again in the backward pass: steps and, within them, the network's blocks; steps; a coupled chain's
states, by inversion; nothing."""


def check(objective: str, target: float | None) -> None:
    """Raises ConfigError where the settings that all these methods have do not fit together."""
    if objective != "reward" and target is None:
        raise ConfigError(
            f"algorithm.objective is {objective}, which is measured from a reward to be reached: give algorithm.target"
        )
    if objective == "reward" and target is not None:
        raise ConfigError(
            f"algorithm.target is {target:g}, but the objective `reward` has none: leave it out, or choose "
            "algorithm.objective = hinge or distance"
        )


def last(candidates: Sequence[int], count: int | None) -> list[int]:
    """The last `count` of the window's steps, all of them for None or for more than there are."""
    return list(candidates) if count is None else list(candidates)[-count:]


def one(candidates: Sequence[int], generator: Generator) -> list[int]:
    """One of the steps, each as likely."""
    return [candidates[int(generator.integers(len(candidates)))]]


def rows(rollout: Rollout) -> Rows:
    """One row for each image."""
    from tastemaker.types import all_rows

    return all_rows(rollout, count=1)


def learning(rows: Rows) -> list[int]:
    """The sampler trained steps. Raises ValueError for rows of no round of this kind, or of several draws."""
    if rows.grad_steps is None:
        raise ValueError("the rows do not say which steps learn")
    if (rows.grad_steps != rows.grad_steps[0]).any():
        raise ValueError("the rows learn at different steps, which one chain cannot have")
    return rows.grad_steps[0].nonzero().flatten().tolist()


def conditioned(rows: Rows) -> tuple[Draw, Cond]:
    """Which images the rows are, and their conditioning."""
    return rows.rollout.draw.select(rows.image.tolist()), rows.rollout.cond.select(rows.image)


def edict_mixing(checkpointing: Checkpointing, mixing_coeff: float | None) -> float | None:
    """p of EDICT's mixing layers; None for the ordinary chain. Raises ConfigError where it is given for that one."""
    if checkpointing == "edict":
        return MIXING if mixing_coeff is None else mixing_coeff
    if mixing_coeff is not None:
        raise ConfigError(
            f"algorithm.mixing_coeff is {mixing_coeff:g}, which belongs to algorithm.checkpointing = edict, but that "
            f"is {checkpointing}: leave it out, or choose edict"
        )
    return None


def calls_of_step(checkpointing: Checkpointing) -> int:
    """Calls of the network that a step of sampling takes."""
    return 2 if checkpointing == "edict" else 1


def sampled(task: Task, rows: Rows, checkpointing: Checkpointing, mixing: float | None, compare: bool) -> Chain:
    """Latents of the rows' images with a graph through the steps that learn, by the ordinary chain or EDICT's."""
    from tastemaker.diffusion.backprop import chain
    from tastemaker.diffusion.edict import coupled_chain

    draw, cond = conditioned(rows)
    steps = learning(rows)
    if mixing is not None:
        return coupled_chain(task.model, cond, draw, task.sde, steps, mixing=mixing, compare=compare)
    return chain(task.model, cond, draw, task.sde, steps, recompute=checkpointing != "none", compare=compare)


def rewarded(task: Task, rows: Rows, x0: Tensor, recompute: bool) -> Tensor:
    """Rewards [N], with their graph, of images of the rows' prompts from latents [N,*D], which the round gets to see.

    Raises RewardError as `rewards.base.score` does, and ValueError where the task has no reward.
    """
    import torch

    from tastemaker.diffusion.backprop import shown
    from tastemaker.rewards.base import score

    if task.reward is None:
        raise ValueError("the task has no reward")
    draw, _ = conditioned(rows)
    if task.reward.space == "latent":  # the gradient does not go through the decoder
        with torch.no_grad():
            images = task.model.decode(x0)
    else:
        images = shown(task.model, x0, recompute=recompute)
    found = score(task.reward, images, draw.prompts, x0)
    parts = {name: values.detach() for name, values in found.parts.items()}
    task.on_images(rows.image, images.detach(), found.total.detach(), parts)
    return found.total


def losses_of(
    reward: Tensor, objective: Objective, target: float | None, scale: float, kl: float, divergence: Tensor | None
) -> tuple[Tensor, Metrics]:
    """scale * objective + kl * divergence [N], and the metrics that these methods have."""
    from tastemaker.diffusion import losses

    loss = scale * losses.reward_loss(reward, objective, 0.0 if target is None else target)
    if divergence is None:
        return loss, {}
    return loss + kl * divergence, {"divergence": divergence.detach()}
