"""The round: draw, sample, score, normalise, update (ARCHITECTURE.md). The updates themselves are in update.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tastemaker.algorithms.advantage import (
    PromptStatistics,
    RecentRounds,
    against_base,
    boltzmann,
    group_relative,
    percentile,
    standardise,
)
from tastemaker.diffusion.losses import adaptive_kl
from tastemaker.diffusion.sampler import batches, sample
from tastemaker.rewards.base import Reward, combined, leaf_scores
from tastemaker.rewards.expression import labels
from tastemaker.runs.checkpoint import State
from tastemaker.training.backprop_round import pathwise_round
from tastemaker.training.draws import UNSEEN, draw_evaluation, draw_round, share
from tastemaker.training.measurements import diversity, gathered, parts_means, reward_figures, share_correct, verdicts
from tastemaker.training.pairs_round import given_round
from tastemaker.training.reference import sync_reference
from tastemaker.training.session import Session
from tastemaker.training.update import update
from tastemaker.training.value_updates import train_value
from tastemaker.types import Draw, Rollout, concat


@dataclass(frozen=True)
class Evaluation:
    """The fixed images of an evaluation with what was measured on them."""

    draw: Draw
    images: Tensor
    """[B,3,H,W] in [0,1]"""
    reward: Tensor
    """[B]"""
    correct: list[bool | None]
    """The judge's verdicts."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """[B] each, of a combined reward's parts by name."""
    others: dict[str, Tensor] = field(default_factory=dict)
    """[B] each, of the rewards that only look, by name."""
    unseen: Evaluation | None = None
    """The same of prompts that are not trained on."""

    def record(self, state: State) -> dict[str, Any]:
        return {"evaluation": state.round} | self._measures(state, "eval/")

    def _measures(self, state: State, under: str) -> dict[str, float]:
        others = zip(labels(list(self.others)), self.others.values(), strict=True)
        found = {
            **reward_figures(self.reward, state),
            **parts_means(self.parts),
            **{f"rewards/{name}": values.double().mean().item() for name, values in others},
            "diversity": diversity(self.images, self.draw.prompts),
            **share_correct(self.correct, "judge/correct"),
        }
        own = {f"{under}{name}": value for name, value in found.items()}
        return own if self.unseen is None else own | self.unseen._measures(state, f"{under}unseen/")


@torch.no_grad()
def evaluate(session: Session) -> Evaluation:
    """Samples and scores the fixed images with the model as it is now.

    The first time, which is the base model's, combined rewards measure what they standardise on them.
    """
    options, seed = session.config.evaluation, session.config.seed
    seen = _evaluated(session, draw_evaluation(session.prompts, seed, options.prompts, options.per_prompt))
    if session.unseen is None:
        return seen
    draw = draw_evaluation(session.unseen, seed, options.prompts, options.per_prompt, UNSEEN)
    return replace(seen, unseen=_evaluated(session, draw))


def _evaluated(session: Session, draw: Draw) -> Evaluation:
    every = {session.config.reward: session.reward, **session.others}
    with (
        session.phase("evaluate", len(draw) * session.config.sampling.steps), session.inference(), session.averaged()
    ):  # fmt: skip
        _, images, found = collect(session, draw, keep=(), rewards=every)
    session.measure(found)
    scores = combined(every, found, draw.prompts)
    own = scores[session.config.reward]
    return Evaluation(
        draw,
        images,
        own.total,
        verdicts(session, images, draw.prompts),
        own.parts,
        {name: scores[name].total for name in session.others},
    )


def collect(
    session: Session,
    draw: Draw,
    keep: Sequence[int],
    between: Callable[[], None] = lambda: None,
    rewards: Mapping[str, Reward] | None = None,
) -> tuple[Rollout, Tensor, dict[str, Tensor]]:
    """Samples a draw in batches; a batch is scored while the next one is sampled. Calls `between` before each.

    Gives the rollout, the images [B,3,H,W], and by name the rewards [B] of `rewards` (the run's own) or of their
    parts, all on the CPU. Raises RewardError soon after a reward fails, without sampling the rest.
    """
    sampling, model = session.config.sampling, session.model
    parts, images = [], []
    with _scorer(rewards or {session.config.reward: session.reward}) as scorer:
        # The branches of a root are sampled together.
        size = max(1, sampling.batch // sampling.branches) * sampling.branches
        for places in batches(len(draw), size):
            between()
            scorer.check()
            chosen = draw.select(places)
            step = lambda: session.display.advance(len(places))  # noqa: B023, E731
            cond = model.encode(chosen.prompts, sampling.guidance)
            part = sample(
                model, cond, chosen, session.task.grid, sampling.eta, keep,
                on_step=step, reduction=sampling.log_prob, quiet_outside=bool(keep) and not sampling.noise_outside,
            )  # fmt: skip
            x = model.decode(part.x0).float().cpu()
            parts.append(part)
            images.append(x)
            scorer.submit(x, chosen.prompts)
        start = time.perf_counter()
        # A signal need not wait for a reward that takes long; but several processes have to be asked together.
        alone = session.accelerator.num_processes == 1
        answers = [answer.result() for answer in scorer.finished(between if alone else lambda: None)]
        session.seconds["score"] += time.perf_counter() - start
    found = {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}
    return concat(parts), torch.cat(images), found


class _Scorer:
    """One thread, as rewards need not bear more. After a failure nothing is asked any more: each question may wait."""

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        self.rewards, self.thread = rewards, ThreadPoolExecutor(max_workers=1)
        self.answers: list[Future[dict[str, Tensor]]] = []
        self.failed: BaseException | None = None

    def submit(self, x: Tensor, prompts: Sequence[str]) -> None:
        self.answers.append(self.thread.submit(self._score, x, prompts))

    def finished(self, meanwhile: Callable[[], None]) -> Iterator[Future[dict[str, Tensor]]]:
        """The answers in order, each when it is there; calls `meanwhile` again and again until then."""
        for answer in self.answers:
            while wait([answer], timeout=0.2).not_done:
                meanwhile()
            yield answer

    def check(self) -> None:
        if self.failed is not None:
            raise self.failed

    def cancel(self) -> None:
        for reward in self.rewards.values():
            reward.cancel()

    def _score(self, x: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        self.check()
        try:
            return leaf_scores(self.rewards, x, prompts)
        except BaseException as error:  # a reward may raise KeyboardInterrupt
            self.failed = error
            raise


@contextmanager
def _scorer(rewards: Mapping[str, Reward]) -> Iterator[_Scorer]:
    """After an error or a signal, images that still wait are not scored, and a reward that can be is cut short."""
    scorer = _Scorer(rewards)
    try:
        yield scorer
    except BaseException:
        scorer.thread.shutdown(wait=False, cancel_futures=True)
        while under_way := [answer for answer in scorer.answers if not answer.done()]:
            scorer.cancel()
            wait(under_way, timeout=0.1)
        raise
    finally:
        scorer.thread.shutdown(cancel_futures=True)


def one_round(session: Session) -> dict[str, Any]:
    """One round; returns its record for metrics.jsonl. The state's round number moves on at the end."""
    if session.config.pathwise:
        record = pathwise_round(session)
    else:
        record = sampled_round(session) if session.pairs is None else given_round(session, session.pairs)
    session.state.updates += record["updates"]
    sync_reference(session)
    return record


def sampled_round(session: Session) -> dict[str, Any]:
    """A round that learns from images which it samples itself."""
    config, accelerator, state = session.config, session.accelerator, session.state
    number, sampling = state.round + 1, config.sampling
    draw = draw_round(
        session.prompts,
        config.seed,
        number,
        sampling.samples,
        sampling.per_prompt,
        sampling.branches,
        config.group_size,
    )
    mine = share(len(draw), config.slices, accelerator.process_index, accelerator.num_processes)
    own = draw.select(mine)
    keep = session.window.steps(session.task.grid.stochastic(sampling.eta), number)
    with session.phase("sample", len(mine) * sampling.steps), session.inference():
        rollout, images, found = collect(session, own, keep, session.stop.check)
    session.stop.check()
    scores = combined({config.reward: session.reward}, found, own.prompts)[config.reward]
    own_reward = scores.total
    reward = gathered(accelerator, own_reward, len(draw), config.slices)
    parts = {name: gathered(accelerator, values, len(draw), config.slices) for name, values in scores.parts.items()}
    advantage = advantages(session, draw, reward)
    # Pairs must not depend on which images a process has, so that they stay within what it surely has together.
    paired = getattr(config.algorithm, "keep_groups_together", False)
    group = [place // config.group_size for place in range(len(draw))] if paired else draw.groups()
    selected = config.selection.chosen(advantage, group)
    device = rollout.x0.device
    rollout = replace(
        rollout, reward=own_reward.to(rollout.x0), advantage=advantage[mine].to(rollout.x0), draw=own,
        group=torch.tensor(group)[mine].to(device), selected=selected[mine].to(device),
    )  # fmt: skip
    correct = verdicts(session, images, own.prompts)
    session.task = replace(session.task, kl=kl_weight(session))
    learned: dict[str, float] = {}
    if session.task.value is not None and getattr(config.algorithm, "value_text", None) == "pooled":
        rollout = replace(rollout, value_text=session.model.pooled(own.prompts).unsqueeze(1))
    if session.task.value is not None and getattr(config.algorithm, "value_batch", None) is not None:
        with session.phase("value", 1):
            learned = train_value(session, rollout, mine, selected)
    with session.phase("prepare", 1), session.inference(), torch.no_grad():
        rows = config.algorithm.prepare(session.task, rollout)
    with session.phase("train", len(rows) * config.optimizer.inner_epochs):
        metrics = update(session, rows, mine, own, len(draw), selected)
    if not metrics["updates"]:
        count = int(selected.sum())
        few = f"only {count} images were selected, too few for optimizer.images_per_update"
        session.display.say(
            f"round {number}: {few if count else 'no image was selected'}, so nothing was learned from it"
        )
    metrics |= learned | control(session, metrics, len(keep))
    state.round = number
    state.reward_queries += len(draw)
    return {
        "round": number,
        **reward_figures(reward, state),
        "reward/min": reward.min().item(),
        "reward/max": reward.max().item(),
        **parts_means(parts),
        **share_correct(correct, "judge/correct", accelerator),
        "diversity": diversity(images, own.prompts, draw.prompts, accelerator),
        "advantage/std": advantage.double().std(correction=0).item(),
        "selected": selected.float().mean().item(),
        "window": len(keep),
        **metrics,
        "reward_queries": state.reward_queries,
    }


def kl_weight(session: Session) -> float:
    """The weight of the divergence in this round's rewards: the algorithm's own, or where a controller moved it."""
    own = getattr(session.config.algorithm, "kl", 0.0)
    return own if session.state.kl is None else session.state.kl


def control(session: Session, metrics: Mapping[str, float], kept: int) -> dict[str, float]:
    """Moves the weight of the divergence towards its target, where the algorithm has one."""
    algorithm: Any = session.config.algorithm
    target = getattr(algorithm, "kl_target", None)
    if target is None or "kl" not in metrics:
        return {}
    used, measured = session.task.kl, metrics["kl"] * kept
    episodes = session.config.sampling.samples
    session.state.kl = adaptive_kl(used, measured, target, episodes, algorithm.kl_horizon)
    return {"kl_weight": used, "kl_trajectory": measured}


def advantages(session: Session, draw: Draw, reward: Tensor) -> Tensor:
    """Advantages, or a regression's weights, [B] of the whole round's rewards, the same on every process.

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
    elif options.normalise == "base":
        values = against_base(reward, state.base_mean, state.base_std)
    else:
        values = standardise(reward) if options.normalise == "round" else reward
    return values if options.clip is None else values.clamp(-options.clip, options.clip)
