"""The round: draw, sample, score, normalise, update (ARCHITECTURE.md). The updates themselves are in update.py."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tastemaker.advantage import PromptStatistics, standardise
from tastemaker.evaluation.judge import judge
from tastemaker.rewards.contract import score
from tastemaker.sample import batches, sample
from tastemaker.training.checkpoint import State
from tastemaker.training.draws import draw_evaluation, draw_round, share
from tastemaker.training.session import Session
from tastemaker.training.update import tensor, update
from tastemaker.types import Draw, Rollout, concat


@dataclass(frozen=True)
class Evaluation:
    """The fixed pictures of an evaluation with what was measured on them."""

    draw: Draw
    pictures: Tensor
    """[B,3,H,W] in [0,1]"""
    reward: Tensor
    """[B]"""
    correct: list[bool | None]
    """The judge's verdicts."""

    def record(self, state: State) -> dict[str, Any]:
        record = {
            "evaluation": state.round,
            "eval/reward/mean": self.reward.mean().item(),
            "eval/reward/std": self.reward.std(correction=0).item(),
            "eval/reward/base_stds": base_stds(self.reward, state),
            "eval/diversity": diversity(self.pictures, self.draw.prompts),
        }
        return record | share_correct(self.correct, "eval/judge/correct")


def base_stds(reward: Tensor, state: State) -> float:
    """How far the mean reward is above the base model's, in standard deviations of the base model's rewards."""
    return (reward.mean().item() - state.base_mean) / max(state.base_std, 1e-12)


def diversity(x: Tensor, prompts: Sequence[str]) -> float:
    """Mean standard deviation of a pixel over the pictures of a prompt, in [0, 0.5]; 0 when they are all the same."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        groups[prompt].append(index)
    spreads = [x[rows].std(dim=0, correction=0).mean().item() for rows in groups.values() if len(rows) > 1]
    return math.fsum(spreads) / len(spreads) if spreads else 0.0


@torch.no_grad()
def evaluate(session: Session) -> Evaluation:
    """Samples and scores the fixed pictures with the model as it is now."""
    config = session.config
    draw = draw_evaluation(session.prompts, config.seed, config.evaluation.prompts, config.evaluation.per_prompt)
    with session.phase("evaluate", len(draw) * config.sampling.steps), session.inference():
        _, pictures, reward = collect(session, draw, keep=())
    return Evaluation(draw, pictures, reward, verdicts(session, pictures, draw.prompts))


def verdicts(session: Session, pictures: Tensor, prompts: Sequence[str]) -> list[bool | None]:
    """Whether each picture shows its prompt, by the judge; None where model or prompt are not of its world."""
    if session.config.model != "bundled":
        return [None] * len(prompts)
    return [None if verdict is None else verdict.correct for verdict in judge(pictures, prompts)]


def share_correct(correct: Sequence[bool | None], name: str) -> dict[str, float]:
    """The share of pictures found right under `name`; nothing where none could be judged."""
    known = [verdict for verdict in correct if verdict is not None]
    return {name: sum(known) / len(known)} if known else {}


def collect(
    session: Session, draw: Draw, keep: Sequence[int], between: Callable[[], None] = lambda: None
) -> tuple[Rollout, Tensor, Tensor]:
    """Samples a draw in batches; a batch is scored while the next one is sampled. Calls `between` before each.

    Gives the rollout, the pictures [B,3,H,W] and the rewards [B], both on the CPU.
    """
    sampling, model = session.config.sampling, session.model
    parts, pictures, answers = [], [], []
    with _scorer() as scorer:
        for places in batches(len(draw), sampling.batch):
            between()
            chosen = draw.select(places)
            step = lambda: session.display.advance(len(places))  # noqa: B023, E731
            cond = model.encode(chosen.prompts, sampling.guidance)
            part = sample(model, cond, chosen, session.task.grid, sampling.eta, keep, on_step=step)
            x = model.decode(part.x0).float().cpu()
            parts.append(part)
            pictures.append(x)
            answers.append(scorer.submit(score, session.reward, x, chosen.prompts))
        start = time.perf_counter()
        rewards = [answer.result() for answer in answers]
        session.seconds["score"] += time.perf_counter() - start
    return concat(parts), torch.cat(pictures), torch.cat(rewards)


@contextmanager
def _scorer() -> Iterator[ThreadPoolExecutor]:
    """One thread, as rewards need not bear more; after an error the pictures that still wait are not scored."""
    scorer = ThreadPoolExecutor(max_workers=1)
    try:
        yield scorer
    finally:
        scorer.shutdown(cancel_futures=True)


def one_round(session: Session) -> dict[str, Any]:
    """One round; returns its record for metrics.jsonl. The state's round number moves on at the end."""
    config, accelerator = session.config, session.accelerator
    number = session.state.round + 1
    sampling, world = config.sampling, accelerator.num_processes
    draw = draw_round(session.prompts, config.seed, number, sampling.samples, sampling.per_prompt)
    mine = share(len(draw), config.optimizer.updates, accelerator.process_index, world)
    keep = session.window.steps(session.task.grid.stochastic(sampling.eta), number)
    with session.phase("sample", len(mine) * sampling.steps), session.inference():
        rollout, pictures, own_reward = collect(session, draw.select(mine), keep, session.stop.check)
    session.stop.check()
    reward = gathered(accelerator, own_reward, len(draw), config.optimizer.updates)
    advantage = advantages(session, draw.prompts, reward)
    rollout = replace(rollout, reward=own_reward.to(rollout.logp), advantage=advantage[mine].to(rollout.logp))
    correct = verdicts(session, pictures, draw.select(mine).prompts)
    rows = config.algorithm.prepare(session.task, rollout)
    with session.phase("train", len(rows) * config.optimizer.inner_epochs):
        metrics = update(session, rows, draw.select(mine), len(keep))
    session.state.round = number
    session.state.reward_queries += len(draw)
    return {
        "round": number,
        "reward/mean": reward.mean().item(),
        "reward/std": reward.std(correction=0).item(),
        "reward/min": reward.min().item(),
        "reward/max": reward.max().item(),
        "reward/base_stds": base_stds(reward, session.state),
        **share_correct(correct, "judge/correct"),
        "diversity": diversity(pictures, draw.select(mine).prompts),
        "advantage/std": advantage.std(correction=0).item(),
        **metrics,
        "reward_queries": session.state.reward_queries,
    }


def gathered(accelerator: Accelerator, own: Tensor, samples: int, updates: int) -> Tensor:
    """Every process' values [B / world] in the round's order, [B] float32 on the CPU."""
    world = accelerator.num_processes
    if world == 1:
        return own
    everyone = tensor(accelerator.gather(own.to(accelerator.device))).cpu()
    order = torch.tensor([place for rank in range(world) for place in share(samples, updates, rank, world)])
    return torch.empty(samples).index_copy_(0, order, everyone)


def advantages(session: Session, prompts: Sequence[str], reward: Tensor) -> Tensor:
    """Advantages [B] of the whole round's rewards, the same on every process; updates the running statistics."""
    options = session.config.advantage
    if options.normalise == "per-prompt":
        statistics = PromptStatistics(options.buffer, options.min_count, session.state.past_rewards)
        values = statistics.advantages(prompts, reward)
    else:
        values = standardise(reward)
    return values.clamp(-options.clip, options.clip)
