"""The round of algorithms that follow the reward's own gradient: they sample and score while they learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tastemaker import noise
from tastemaker.algorithms.base import RewardGradientAlgorithm
from tastemaker.algorithms.windows import Window
from tastemaker.config.schema import Config
from tastemaker.training.draws import RoundPart, draw_round, share
from tastemaker.training.measurements import RoundImages, finished_round, gathered, image_figures
from tastemaker.training.session import Session
from tastemaker.training.update import update
from tastemaker.types import Rollout

_TRUNCATION = 2
"""The round's own decision which steps have a gradient (noise.choices; draws.py has the others)."""


@dataclass
class ImageStore:
    """The images of a round with their rewards, on the CPU, as its losses make them; the last one of each counts."""

    count: int
    images: dict[int, Tensor] = field(default_factory=dict)
    rewards: dict[int, Tensor] = field(default_factory=dict)
    parts: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    def __call__(self, indices: Tensor, images: Tensor, rewards: Tensor, parts: Mapping[str, Tensor]) -> None:
        for index, image, reward in zip(indices.tolist(), images.float().cpu(), rewards.float().cpu(), strict=True):
            self.images[index], self.rewards[index] = image, reward
        for name, values in parts.items():
            kept = self.parts.setdefault(name, {})
            kept |= dict(zip(indices.tolist(), values.float().cpu(), strict=True))

    def stacked(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Images [B,3,H,W], rewards [B] and those of the parts [B], in the order of the draw."""
        order = range(self.count)
        parts = {name: torch.stack([values[i] for i in order]) for name, values in self.parts.items()}
        return torch.stack([self.images[i] for i in order]), torch.stack([self.rewards[i] for i in order]), parts


def backprop_round(session: Session, algorithm: RewardGradientAlgorithm) -> dict[str, Any]:
    """One round; returns its record for metrics.jsonl.

    Each update has its own trained steps, the same on every process: for all its images, or for each
    `algorithm.images_per_draw` of them in the round's order.
    """
    config, accelerator = session.config, session.accelerator
    number, sampling, updates = session.state.round + 1, config.sampling, config.optimizer.updates
    draw = draw_round(session.prompts, config.seed, number, sampling.samples, sampling.per_prompt)
    part = RoundPart(draw, share(len(draw), updates, accelerator.process_index, accelerator.num_processes))
    whole, chosen = len(session.task.sde), gradient_steps(session, algorithm, number)
    grad_steps = torch.tensor([[step in steps for step in range(whole)] for steps in chosen])
    store = ImageStore(len(part.own))
    session.task = replace(session.task, on_images=store)
    rollout = Rollout(session.model.encode(part.own.prompts, sampling.guidance), part.own)
    rows = algorithm.prepare(session.task, rollout)
    index = torch.as_tensor(part.indices)[rows.image.cpu()]
    rows = replace(rows, grad_steps=grad_steps[index // (len(draw) // len(chosen))])
    with session.phase("train", len(rows)):
        metrics = update(session, rows, part)
    images, own_reward, own_parts = store.stacked()
    everyone = lambda values: gathered(accelerator, values, len(draw), updates)  # noqa: E731
    made = RoundImages(
        part, images, everyone(own_reward), {name: everyone(values) for name, values in own_parts.items()}
    )
    figures = image_figures(session, made)
    depth = sum(whole - min(steps) for steps in chosen) / len(chosen)
    return finished_round(session, len(draw) * algorithm.requirements.queries, figures, {"depth": depth}, metrics)


def gradient_steps(session: Session, algorithm: RewardGradientAlgorithm, number: int) -> list[list[int]]:
    """The sampler trained steps, of each draw of a round: one an update, or several of equally many images."""
    return drawn_gradient_steps(session.config, algorithm, session.window, len(session.task.sde), number)


def drawn_gradient_steps(
    config: Config, algorithm: RewardGradientAlgorithm, window: Window, steps: int, number: int
) -> list[list[int]]:
    """Those of round `number` of a run with T = `steps` sampler steps, from its settings alone."""
    generator = noise.choices(config.seed, number, _TRUNCATION)
    candidates = window.steps(range(steps), number, config.seed)
    images = algorithm.requirements.images_per_draw or config.sampling.samples // config.optimizer.updates
    return [algorithm.steps(candidates, generator) for _ in range(config.sampling.samples // images)]
