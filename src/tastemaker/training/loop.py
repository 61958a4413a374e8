"""The round: draw, sample, score, normalise, update. The only place with an optimizer, a backward pass or a device."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tastemaker.advantage import PromptStatistics, standardise
from tastemaker.errors import DivergedError
from tastemaker.evaluation.judge import judge
from tastemaker.prompts import PromptSet
from tastemaker.rewards.contract import Reward, score
from tastemaker.sample import batches, sample
from tastemaker.training.checkpoint import State
from tastemaker.training.config import Config
from tastemaker.training.draws import draw_evaluation, draw_round, share, update_rows
from tastemaker.training.progress import Display
from tastemaker.types import Draw, Rollout, Rows, Task, concat
from tastemaker.windows import Whole, Window


@dataclass
class Session:
    """A run while it goes on."""

    config: Config
    accelerator: Accelerator
    model: Any
    optimizer: torch.optim.Optimizer
    reward: Reward
    prompts: PromptSet
    task: Task
    state: State
    display: Display
    window: Window = field(default_factory=Whole)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[None]:
        """Shows a bar and takes the time of one part of a round."""
        start = time.perf_counter()
        with self.display.phase(name, total):
            yield
        self.seconds[name] += time.perf_counter() - start

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Inside it the bare network is called: a distributed wrapper would wait for the other processes."""
        wrapped = self.model.network
        self.model.network = self.accelerator.unwrap_model(wrapped)
        try:
            yield
        finally:
            self.model.network = wrapped


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


def collect(session: Session, draw: Draw, keep: Sequence[int]) -> tuple[Rollout, Tensor, Tensor]:
    """Samples a draw in batches; a batch is scored while the next one is sampled.

    Gives the rollout, the pictures [B,3,H,W] and the rewards [B], both on the CPU.
    """
    sampling, model = session.config.sampling, session.model
    parts, pictures, answers = [], [], []
    with ThreadPoolExecutor(max_workers=1) as scorer:
        for places in batches(len(draw), sampling.batch):
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
    session.state.reward_queries += len(draw)
    return concat(parts), torch.cat(pictures), torch.cat(rewards)


def one_round(session: Session) -> dict[str, Any]:
    """One round; returns its record for metrics.jsonl. The state's round number moves on at the end."""
    config, accelerator = session.config, session.accelerator
    session.seconds.clear()
    start, number = time.perf_counter(), session.state.round + 1
    sampling, world = config.sampling, accelerator.num_processes
    draw = draw_round(session.prompts, config.seed, number, sampling.samples, sampling.per_prompt)
    mine = share(len(draw), config.optimizer.updates, accelerator.process_index, world)
    keep = session.window.steps(session.task.grid.stochastic(sampling.eta), number)
    with session.phase("sample", len(mine) * sampling.steps), session.inference():
        rollout, pictures, own_reward = collect(session, draw.select(mine), keep)
    session.seconds["sample"] -= session.seconds["score"]
    reward = gathered(accelerator, own_reward, len(draw), config.optimizer.updates)
    advantage = advantages(session, draw.prompts, reward)
    rollout = replace(rollout, reward=own_reward.to(rollout.logp), advantage=advantage[mine].to(rollout.logp))
    correct = verdicts(session, pictures, draw.select(mine).prompts)
    rows = config.algorithm.prepare(session.task, rollout)
    updates = config.optimizer.updates * config.optimizer.inner_epochs
    with session.phase("train", len(rows) * config.optimizer.inner_epochs):
        metrics = update(session, rows, draw.select(mine), len(keep))
    session.state.round = number
    session.state.reward_queries += (world - 1) * len(mine)
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
        "updates": updates,
        "reward_queries": session.state.reward_queries,
        "seconds/round": time.perf_counter() - start,
        **{f"seconds/{name}": value for name, value in session.seconds.items()},
    }


def gathered(accelerator: Accelerator, own: Tensor, samples: int, updates: int) -> Tensor:
    """Every process' values [B / world] in the round's order, [B] float32 on the CPU."""
    world = accelerator.num_processes
    if world == 1:
        return own
    everyone = accelerator.gather(own.to(accelerator.device)).cpu()
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


def update(session: Session, rows: Rows, draw: Draw, kept: int) -> dict[str, float]:
    """The optimizer steps of a round on this process' rows (update-major). Returns means of the metrics.

    Raises DivergedError before a loss or gradient that is not finite reaches the weights.
    """
    options = session.config.optimizer
    size = len(draw) // options.updates
    tally = Tally()
    for _ in range(options.inner_epochs):
        for number in range(options.updates):
            pictures = range(number * size, (number + 1) * size)
            chosen = update_rows(rows, pictures, kept, draw, options.timestep_fraction)
            norm = accumulate(session, chosen, tally)
            session.optimizer.step()
            session.optimizer.zero_grad()
            tally.norms.append(norm)
    return tally.means(session.accelerator)


def accumulate(session: Session, rows: Rows, tally: Tally) -> float:
    """Gradients of one update, in micro-batches, divided by the global number of rows; returns their norm."""
    config, accelerator, network = session.config, session.accelerator, session.model.network
    parts = batches(len(rows), config.optimizer.rows)
    total = torch.zeros((), device=accelerator.device)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with nullcontext() if last else accelerator.no_sync(network):
            loss, metrics = config.algorithm.loss(session.task, rows.select(slice(part.start, part.stop)))
            # Each process has the same number of rows, and wrappers average over processes: a mean over all rows.
            accelerator.backward(loss.sum() / len(rows))
        total += loss.detach().sum()
        tally.add(loss, metrics)
        session.display.advance(len(part))
    norm = accelerator.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], config.optimizer.clip_norm)
    value = float(norm) if norm is not None else 0.0
    scaled = accelerator.scaler is not None  # float16 loss scaling skips a step with overflows by itself
    if not math.isfinite(total.item()) or not (math.isfinite(value) or scaled):
        session.optimizer.zero_grad()
        what = "loss" if not math.isfinite(total.item()) else "gradient"
        raise DivergedError(
            f"the {what} of round {session.state.round + 1} is not finite; the weights were not touched by it. "
            f"Try a smaller optimizer.lr (now {config.optimizer.lr:g}), or precision = fp32"
        )
    tally.first = False
    return value if math.isfinite(value) else 0.0


class Tally:
    """Sums of the rows' metrics, kept on the device until the round ends: no waiting for it in between."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.tops: dict[str, Tensor] = {}
        self.norms: list[float] = []
        self.rows = 0
        self.first = True

    def add(self, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        self.rows += len(loss)
        for name, values in (metrics | {"loss": loss.detach()}).items():
            self.sums[name] = self.sums.get(name, 0) + values.sum()  # type: ignore[assignment]
        off = metrics.get("ratio_deviation")
        if off is not None:
            for name in ("max", "first") if self.first else ("max",):
                self.tops[name] = torch.maximum(self.tops.get(name, off.new_zeros(())), off.max())

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes' rows; `ratio_deviation/first` is the largest before the first update."""
        means = {name: (accelerator.reduce(v, "mean") / self.rows).item() for name, v in self.sums.items()}
        tops = {f"ratio_deviation/{k}": accelerator.gather(v.reshape(1)).max().item() for k, v in self.tops.items()}
        if "ratio_deviation" in means:
            means["ratio_deviation/mean"] = means.pop("ratio_deviation")
        norm = math.fsum(self.norms) / len(self.norms)
        return {**means, **tops, "grad_norm": norm}
