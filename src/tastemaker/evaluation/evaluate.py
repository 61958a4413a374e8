"""Images of a model with their rewards: what rounds learn from, and what evaluations measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tastemaker import tree
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sampler import Sampler, batches, do_nothing
from tastemaker.evaluation.metrics import verdicts
from tastemaker.evaluation.scoring import background_scorer
from tastemaker.rewards.base import Reward, Scores, combined, require_latents_of
from tastemaker.rewards.combination import Combination
from tastemaker.types import Draw, Rollout


def _no_progress(count: int) -> None:
    """Where nobody looks at the progress."""


@dataclass(frozen=True)
class Generated:
    """B sampled images with the rewards that were asked for. Images and rewards are on the CPU."""

    rollout: Rollout
    images: Tensor
    """[B,3,H,W] in [0,1]"""
    found: dict[str, Tensor]
    """[B] by name: rewards, and in place of a combination its parts."""
    waited: float
    """Seconds for which sampling was over and rewards were still being computed."""


@torch.no_grad()
def generate(
    model: Model,
    sampler: Sampler,
    draw: Draw,
    *,
    guidance: float,
    batch: int,
    keep: Sequence[int] = (),
    rewards: Mapping[str, Reward] | None = None,
    pooled: bool = False,
    advance: Callable[[int], None] = _no_progress,
    before_batch: Callable[[], None] = do_nothing,
    while_waiting: Callable[[], None] = do_nothing,
) -> Generated:
    """Samples a draw in batches of `batch` images; a batch is scored while the next one is sampled.

    `keep` are the sampler steps whose transitions are kept, `pooled` asks for pooled states of the prompts too.
    Calls `before_batch` before each batch, `while_waiting` again and again while rewards are waited for, and `advance`
    with the number of images after each sampler step. Raises RewardError soon after a reward fails, without sampling
    the rest, and before all for a reward on the latents of another model.
    """
    require_latents_of(model, rewards or {})
    rollouts, images = [], []
    with background_scorer(rewards or {}) as scorer:
        for part in batches(len(draw), batch):
            before_batch()
            scorer.check()
            chosen = draw.select(part)
            cond = model.encode(chosen.prompts, guidance, pooled=pooled)
            rollout = sampler(chosen, cond, keep, lambda: advance(len(part)))  # noqa: B023
            x = model.decode(rollout.x0).float().cpu()
            rollouts.append(rollout)
            images.append(x)
            if scorer.rewards:
                scorer.submit(x, chosen.prompts, rollout.x0)
        start = time.perf_counter()
        found = scorer.finish(while_waiting)
        waited = time.perf_counter() - start
    trajectories = [rollout.trajectory for rollout in rollouts if rollout.trajectory is not None]
    whole = Rollout(
        model.encode(draw.prompts, guidance, pooled=pooled), draw, torch.cat([rollout.x0 for rollout in rollouts]),
        tree.concat(trajectories) if trajectories else None,
    )  # fmt: skip
    return Generated(whole, torch.cat(images), found, waited)


@dataclass(frozen=True)
class Evaluation:
    """Images with what was measured on them."""

    draw: Draw
    images: Tensor
    """[B,3,H,W] in [0,1]"""
    scores: dict[str, Scores]
    """[B] by the names of the rewards."""
    correct: list[bool | None]
    """The judge's verdicts; None for what it cannot judge."""


def evaluate(
    model: Model,
    sampler: Sampler,
    draw: Draw,
    rewards: Mapping[str, Reward],
    *,
    guidance: float,
    batch: int,
    judged: bool,
    advance: Callable[[int], None] = _no_progress,
    while_waiting: Callable[[], None] = do_nothing,
) -> Evaluation:
    """Samples and scores the images of a draw, which settles prompts and seeds.

    A combination of rewards that has not been measured takes its statistics from these images, so the base model's
    come first. `judged` says whether the bundled world's judge looks at the images. Calls `while_waiting` again and
    again while rewards are waited for. Raises RewardError.
    """
    made = generate(
        model, sampler, draw, guidance=guidance, batch=batch, rewards=rewards, advance=advance,
        while_waiting=while_waiting,
    )  # fmt: skip
    return scored(made, rewards, judged=judged)


def scored(made: Generated, rewards: Mapping[str, Reward], *, judged: bool) -> Evaluation:
    """The evaluation of images whose rewards, or their parts, are known. Raises RewardError as `evaluate` does."""
    prompts = made.rollout.draw.prompts
    for reward in rewards.values():
        if isinstance(reward, Combination) and not reward.statistics:
            reward.measure(made.found)
    scores = combined(rewards, made.found, prompts)
    return Evaluation(made.rollout.draw, made.images, scores, verdicts(made.images, prompts, judged=judged))
