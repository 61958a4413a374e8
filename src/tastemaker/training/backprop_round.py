"""The round of algorithms that follow the reward's own gradient: they sample and score while they learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from tastemaker import noise
from tastemaker.training.draws import draw_round, share
from tastemaker.training.measurements import diversity, gathered, parts_means, reward_figures, share_correct, verdicts
from tastemaker.training.session import Session
from tastemaker.training.update import update
from tastemaker.types import Draw, Rollout

_TRUNCATION = 2
"""The round's own decision which steps learn (noise.choices; draws.py has the others)."""


@dataclass
class Seen:
    """The images of a round with their rewards, on the CPU, as its losses make them; the last one of each counts."""

    count: int
    images: dict[int, Tensor] = field(default_factory=dict)
    rewards: dict[int, Tensor] = field(default_factory=dict)
    parts: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    def __call__(self, places: Tensor, images: Tensor, rewards: Tensor, parts: Mapping[str, Tensor]) -> None:
        for place, image, reward in zip(places.tolist(), images.float().cpu(), rewards.float().cpu(), strict=True):
            self.images[place], self.rewards[place] = image, reward
        for name, values in parts.items():
            kept = self.parts.setdefault(name, {})
            kept |= dict(zip(places.tolist(), values.float().cpu(), strict=True))

    def together(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Images [B,3,H,W], rewards [B] and those of the parts [B], in the order of the draw."""
        order = range(self.count)
        parts = {name: torch.stack([values[i] for i in order]) for name, values in self.parts.items()}
        return torch.stack([self.images[i] for i in order]), torch.stack([self.rewards[i] for i in order]), parts


def pathwise_round(session: Session) -> dict[str, Any]:
    """One round; returns its record for metrics.jsonl.

    Each update has its own steps that learn, the same on every process: for all its images, or for each
    `algorithm.images_per_draw` of them in the round's order.
    """
    config, accelerator, state = session.config, session.accelerator, session.state
    algorithm: Any = config.algorithm
    number, sampling, updates = state.round + 1, config.sampling, config.optimizer.updates
    draw = draw_round(session.prompts, config.seed, number, sampling.samples, sampling.per_prompt)
    mine = share(len(draw), updates, accelerator.process_index, accelerator.num_processes)
    own, whole = draw.select(mine), len(session.task.grid)
    chosen = learning_steps(session, number)
    grad_steps = torch.tensor([[step in steps for step in range(whole)] for steps in chosen])
    together = len(draw) // len(chosen)
    seen = Seen(len(own))
    session.task = replace(session.task, seen=seen)
    rows = algorithm.prepare(session.task, placed(session, own))
    place = torch.as_tensor(mine)[rows.image.cpu()]
    rows = replace(rows, grad_steps=grad_steps[place // together])
    with session.phase("train", len(rows)):
        metrics = update(session, rows, mine, own, len(draw))
    images, own_reward, own_parts = seen.together()
    reward = gathered(accelerator, own_reward, len(draw), updates)
    state.round = number
    state.reward_queries += len(draw) * getattr(algorithm, "queries", 1)
    return {
        "round": number,
        **reward_figures(reward, state),
        "reward/min": reward.min().item(),
        "reward/max": reward.max().item(),
        **parts_means({name: gathered(accelerator, part, len(draw), updates) for name, part in own_parts.items()}),
        **share_correct(verdicts(session, images, own.prompts), "judge/correct", accelerator),
        "diversity": diversity(images, own.prompts, draw.prompts, accelerator),
        "depth": sum(whole - min(steps) for steps in chosen) / len(chosen),
        **metrics,
        "reward_queries": state.reward_queries,
    }


def learning_steps(session: Session, number: int) -> list[list[int]]:
    """The sampler steps that learn, of each draw of a round: one an update, or several of equally many images."""
    config, algorithm = session.config, cast(Any, session.config.algorithm)
    generator = noise.choices(config.seed, number, _TRUNCATION)
    window = session.window.steps(range(len(session.task.grid)), number)
    together = getattr(algorithm, "images_per_draw", None) or config.sampling.samples // config.optimizer.updates
    return [algorithm.steps(window, generator) for _ in range(config.sampling.samples // together)]


def placed(session: Session, draw: Draw) -> Rollout:
    """The B images of a draw before any of them is there: their places and text states."""
    text = session.model.encode(draw.prompts, session.config.sampling.guidance).text
    empty = text.new_empty(len(draw), 0)
    steps = torch.empty(0, dtype=torch.int64, device=text.device)
    return Rollout(latents=empty, steps=steps, logp=empty, x0=empty, text=text, draw=draw)
