"""The round: draw, sample, score, normalise, update (ARCHITECTURE.md). The updates themselves are in update.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tastemaker.algorithms.advantage import (
    PromptStatistics,
    RecentRounds,
    against_base,
    boltzmann,
    decoupled,
    group_relative,
    percentile,
    standardise,
)
from tastemaker.algorithms.base import RewardGradientAlgorithm
from tastemaker.diffusion.losses import adaptive_kl
from tastemaker.diffusion.sampler import do_nothing
from tastemaker.evaluation.evaluate import Generated, generate
from tastemaker.rewards.base import combined
from tastemaker.rewards.combination import Combination
from tastemaker.rollout_engine.sampler import EngineSampler
from tastemaker.training.backprop_round import backprop_round
from tastemaker.training.draws import RoundPart, draw_round, share
from tastemaker.training.measurements import RoundImages, explained_variance, finished_round, gathered, image_figures
from tastemaker.training.pairs_round import given_round
from tastemaker.training.reference import sync_reference
from tastemaker.training.session import Session
from tastemaker.training.setup import candidate_steps
from tastemaker.training.single_pass import single_pass_update
from tastemaker.training.update import update
from tastemaker.training.value_updates import train_value
from tastemaker.types import Draw, Rollout


def one_round(session: Session) -> dict[str, Any]:
    """One round; returns its record for metrics.jsonl. The state's round number moves on at the end."""
    algorithm = session.config.algorithm
    if algorithm.needs == "prompts":
        record = backprop_round(session, cast(RewardGradientAlgorithm, algorithm))
    else:
        record = sampled_round(session) if session.pairs is None else given_round(session, session.pairs)
    session.state.updates += record["updates"]
    record |= moved_sampler(session)
    sync_reference(session)
    return record


def moved_sampler(session: Session) -> dict[str, float]:
    """Moves the average that samples towards the weights, and returns its decay, where there is one."""
    average, options = session.sampling_average, session.config.algorithm.requirements.sampling_average
    if average is None or options is None:
        return {}
    decay = options.decay_at(session.state.updates)
    average.ema_update(decay)
    return {"sampling_decay": decay}


def sampled_round(session: Session) -> dict[str, Any]:
    """A round that learns from images which it samples itself."""
    config, accelerator = session.config, session.accelerator
    number, sampling = session.state.round + 1, config.sampling
    draw = draw_round(
        session.prompts, config.seed, number, sampling.samples, sampling.per_prompt, sampling.branches,
        config.group_size,
    )  # fmt: skip
    part = RoundPart(draw, share(len(draw), config.slices, accelerator.process_index, accelerator.num_processes))
    keep = session.window.steps(candidate_steps(session.task.sde), number, config.seed)
    with session.phase("sample", len(part.indices) * sampling.steps), session.inference(), session.sampling():
        made = sampled(session, part.own, keep)
    session.stop.check()
    scores = combined({config.reward: session.reward}, made.found, part.own.prompts)[config.reward]
    everyone = lambda values: gathered(accelerator, values, len(draw), config.slices)  # noqa: E731
    reward = everyone(scores.total)
    parts = {name: everyone(values) for name, values in scores.parts.items()}
    rollout, advantage, selected = learned_from(session, part, made.rollout, scores.total, reward, parts)
    session.task = replace(session.task, kl=kl_weight(session))
    value, value_figures = config.algorithm.requirements.value, {}
    if value is not None and value.batch is not None:
        with session.phase("value", 1):
            value_figures = train_value(session, rollout, part, selected)
    with session.phase("prepare", 1), session.inference(), session.sampling(), torch.no_grad():
        rows = config.algorithm.prepare(session.task, rollout)
    value_figures |= explained_variance(accelerator, rows)
    with session.phase("train", len(rows) * config.optimizer.inner_epochs):
        if config.optimizer.single_pass:
            metrics = single_pass_update(session, rows, selected)
        else:
            metrics = update(session, rows, part, selected)
    if not metrics["updates"]:
        count = int(selected.sum())
        few = f"only {count} images were selected, too few for optimizer.images_per_update"
        session.display.log(
            f"round {number}: {few if count else 'no image was selected'}, so nothing was learned from it"
        )
    figures = image_figures(session, RoundImages(part, made.images, reward, parts)) | {
        "advantage/std": advantage.double().std(correction=0).item(),
        "selected": selected.float().mean().item(),
        "window": len(keep),
    }
    if isinstance(session.sampler, EngineSampler):
        figures |= session.sampler.figures()
    return finished_round(
        session, len(draw), figures, metrics, value_figures, controlled_kl(session, metrics, len(keep))
    )


def sampled(session: Session, draw: Draw, keep: list[int]) -> Generated:
    """Images of a draw with the run's reward, and the transitions of the steps `keep`."""
    sampling, value = session.config.sampling, session.config.algorithm.requirements.value
    alone = session.accelerator.num_processes == 1
    made = generate(
        session.model, session.sampler, draw, guidance=sampling.guidance, batch=sampling.images_per_batch, keep=keep,
        rewards={session.config.reward: session.reward}, pooled=value is not None and value.states == "pooled",
        advance=session.display.advance, before_batch=session.stop.check,
        # A signal need not wait for a reward that takes long; but several processes have to be asked together.
        while_waiting=session.stop.check if alone else do_nothing,
    )  # fmt: skip
    session.seconds["score"] += made.waited
    return made


def learned_from(
    session: Session,
    part: RoundPart,
    rollout: Rollout,
    own_reward: Tensor,
    reward: Tensor,
    parts: Mapping[str, Tensor],
) -> tuple[Rollout, Tensor, Tensor]:
    """This process' rollout with rewards, advantages, groups and selection; all B advantages, and who is selected.

    `reward` [B] and `parts`, those of a combination by name, are of the whole round.
    """
    config, draw = session.config, part.draw
    advantage = advantages(session, draw, reward, parts)
    # Pairs must not depend on which images a process has, so that they stay within what it surely has together.
    paired = config.algorithm.requirements.keep_groups_together
    group = [index // config.group_size for index in range(len(draw))] if paired else draw.groups()
    selected = config.selection.chosen(advantage, group)
    device = rollout.device
    own = replace(
        rollout, reward=own_reward.to(rollout.x0), advantage=advantage[part.indices].to(rollout.x0),
        group=torch.tensor(group)[part.indices].to(device), selected=selected[part.indices].to(device),
    )  # fmt: skip
    return own, advantage, selected


def kl_weight(session: Session) -> float:
    """The weight of the divergence in this round's rewards: the algorithm's own, or where a controller moved it."""
    return session.config.algorithm.requirements.kl if session.state.kl is None else session.state.kl


def controlled_kl(session: Session, metrics: Mapping[str, float], kept: int) -> dict[str, float]:
    """Moves the weight of the divergence towards its target, where the algorithm has one."""
    control = session.config.algorithm.requirements.kl_control
    if control is None or "kl" not in metrics:
        return {}
    used, measured = session.task.kl, metrics["kl"] * kept
    session.state.kl = adaptive_kl(used, measured, control.target, session.config.sampling.samples, control.horizon)
    return {"kl_weight": used, "kl_trajectory": measured}


def advantages(session: Session, draw: Draw, reward: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    """Advantages, or a regression's weights, [B] of the whole round's rewards, the same on every process.

    `parts` are the rewards [B] of a combination's parts, by name.

    Updates the running statistics of the prompts.
    """
    options, state, prompts = session.config.advantage, session.state, draw.prompts
    if options.normalise in ("softmax", "percentile"):
        group = list(draw.prompt_index) if options.across == "prompt" else None
        if options.normalise == "softmax":
            return boltzmann(reward, group, options.beta)
        return percentile(reward, group, options.percentile)
    if options.normalise == "per-prompt":
        statistics = PromptStatistics(options.buffer, options.min_count, state.past_rewards)
        values = statistics.advantages(prompts, reward)
    elif options.normalise == "windowed":
        recent = RecentRounds(options.history, options.min_count, state.past_rewards, state.past_rounds)
        values = recent.advantages(prompts, reward, draw.round)
    elif options.normalise == "group":
        values = group_relative(reward, draw.groups(), options.spread)
    elif options.normalise == "decoupled":
        terms = session.reward.terms(parts) if isinstance(session.reward, Combination) else [(1.0, reward)]
        values = decoupled(terms, draw.groups(), options.spread)
    elif options.normalise == "base":
        values = against_base(reward, state.base_mean, state.base_std)
    else:
        values = standardise(reward) if options.normalise == "round" else reward
    return values if options.clip is None else values.clamp(-options.clip, options.clip)
