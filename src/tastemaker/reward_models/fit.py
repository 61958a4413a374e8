"""The training of one head: AdamW on batches of tasks, and the weights of the epoch with the lowest validation loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tastemaker.errors import DivergedError
from tastemaker.reward_models.comparisons import Task
from tastemaker.reward_models.features import Features, Moment
from tastemaker.reward_models.losses import batch_of, centering_loss, comparison_loss, pair_losses
from tastemaker.reward_models.settings import Training
from tastemaker.reward_models.statistics import Predictions
from tastemaker.rewards.preferences.heads import seeded

EVALUATED = 32
"""Tasks in one pass without gradient."""


@dataclass(frozen=True)
class Fit:
    """A trained head."""

    head: nn.Module
    """In evaluation mode, with the weights of the best epoch."""
    epoch: int
    """The best epoch, from 1; the last one where there is no validation part."""
    history: tuple[dict[str, float], ...]
    """For each epoch `epoch`, `loss` and `accuracy` of the training tasks while they were trained on, and
    `validation_loss` and `validation_accuracy` where there is a validation part."""


def fit(
    head: nn.Module,
    features: Features,
    training: Sequence[Task],
    validation: Sequence[Task],
    settings: Training,
    lr: float,
    seed: int,
    *,
    epochs: int | None = None,
) -> Fit:
    """Trains a head in place. `epochs` other than the settings' are all trained, without early stopping.

    All random decisions are functions of `seed`. Raises DivergedError for a loss that is not finite.
    """
    rng = np.random.default_rng([seed, 1])
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=settings.weight_decay)
    history: list[dict[str, float]] = []
    best, kept = math.inf, copy.deepcopy(head.state_dict())
    best_epoch = 0
    with seeded(seed):  # of dropout within the head, and of noise
        for epoch in range(1, (epochs or settings.epochs) + 1):
            record = {"epoch": float(epoch), **_epoch(head, features, training, settings, optimizer, rng)}
            if validation:
                record |= {f"validation_{name}": value for name, value in evaluate(head, features, validation).items()}
            history.append(record)
            if epochs is not None or not validation:
                best_epoch = epoch
            elif record["validation_loss"] < best:
                best, best_epoch, kept = record["validation_loss"], epoch, copy.deepcopy(head.state_dict())
            elif epoch - best_epoch >= settings.patience:
                break
    if epochs is None and validation:
        head.load_state_dict(kept)
    return Fit(head.eval(), best_epoch, tuple(history))


def _epoch(
    head: nn.Module, features: Features, tasks: Sequence[Task], settings: Training,
    optimizer: torch.optim.Optimizer, rng: np.random.Generator,
) -> dict[str, float]:  # fmt: skip
    """One pass over the tasks; the mean loss and the accuracy on the way."""
    head.train()
    order = rng.permutation(len(tasks))
    losses, right = [], []
    for start in range(0, len(order), settings.batch):
        chosen = [tasks[index] for index in order[start : start + settings.batch]]
        lacking = rng.random(len(chosen)) < settings.text_dropout
        rows = [features.rows_of(task) for task in chosen]
        dropped = torch.tensor([bool(lack) for lack, own in zip(lacking, rows, strict=True) for _ in own])
        index = torch.tensor([row for own in rows for row in own])
        batch = batch_of(chosen, features.backbone.device)
        rewards = features.rewards(head, index, dropped, _moment(features, [len(own) for own in rows], rng))
        loss = comparison_loss(rewards, batch)
        penalised = loss + settings.center_rewards_coefficient * centering_loss(rewards, batch)
        if not torch.isfinite(penalised):
            raise DivergedError(
                f"the loss of the reward model is {penalised.item()}: give a smaller learning rate than "
                f"{optimizer.param_groups[0]['lr']:g} by --lr"
            )
        optimizer.zero_grad(set_to_none=True)
        penalised.backward()
        optimizer.step()
        losses += [loss.item()] * len(chosen)
        difference = (rewards[batch.first] - rewards[batch.second]).detach()
        decided = batch.better != 0.5
        right += ((difference > 0) == (batch.better > 0.5))[decided].tolist()
    return {"loss": sum(losses) / len(losses), "accuracy": sum(right) / max(1, len(right))}


def _moment(features: Features, sizes: Sequence[int], rng: np.random.Generator) -> Moment | None:
    """One time of the backbone's for all images of an update, and noise of each image's own; None where there is one
    time, 0, at which features are known."""
    times = features.backbone.times
    if times == (0,):
        return None
    t = int(rng.choice(np.array(times)))
    return Moment(t, torch.randn(sum(sizes), *features.x.shape[1:]) if t else None)


@torch.no_grad()
def rewards_of(head: nn.Module, features: Features, tasks: Sequence[Task], guidance: float = 1.0) -> list[Tensor]:
    """The rewards [K] of each task's images, on the CPU."""
    head.eval()
    found = []
    for start in range(0, len(tasks), EVALUATED):
        rows = [features.rows_of(task) for task in tasks[start : start + EVALUATED]]
        index = torch.tensor([row for own in rows for row in own])
        values = features.rewards(head, index)
        if guidance != 1:
            without = features.rewards(head, index, torch.ones(len(index), dtype=torch.bool))
            values = without + guidance * (values - without)
        found += values.cpu().split([len(own) for own in rows])
    return found


def evaluate(head: nn.Module, features: Features, tasks: Sequence[Task]) -> dict[str, float]:
    """`loss`, as `comparison_loss` has it, and `accuracy` without ties."""
    rewards, batch = torch.cat(rewards_of(head, features, tasks)), batch_of(tasks)
    loss = (batch.weight * pair_losses(rewards, batch)).sum() / batch.tasks
    pairs = predictions([rewards], tasks).decided()
    right = (pairs.probability > 0.5) == (pairs.better > 0.5)
    return {"loss": loss.item(), "accuracy": float(right.mean()) if len(right) else 0.0}


def predictions(rewards: Sequence[Tensor], tasks: Sequence[Task]) -> Predictions:
    """What rewards, of the images of the tasks one after the other, say of all pairs."""
    values, batch = torch.cat(list(rewards)).double(), batch_of(tasks)
    probability = torch.sigmoid(values[batch.first] - values[batch.second])
    prompts = tuple(task.prompt for task in tasks for _ in task.pairs)
    return Predictions(probability.numpy(), batch.better.double().numpy(), prompts)


def bootstrap(tasks: Sequence[Task], seed: int) -> list[Task]:
    """As many tasks, drawn with replacement."""
    rng = np.random.default_rng([seed, 2])
    return [tasks[index] for index in rng.integers(len(tasks), size=len(tasks))]


def subset(tasks: Sequence[Task], count: int, seed: int) -> list[Task]:
    """`count` of the tasks at random; a smaller number's are among a larger one's."""
    order = np.random.default_rng([seed, 3]).permutation(len(tasks))
    return [tasks[index] for index in sorted(order[:count])]
