"""Optimizer steps of a value network alone, on states of the round, before its policy learns (DPOK's public code)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from tastemaker.algorithms.requirements import ValueTraining
from tastemaker.diffusion.sampler import batches
from tastemaker.training.draws import RoundPart, value_states
from tastemaker.training.session import Session
from tastemaker.training.update import check_finite, clip, placeholder, set_rate, tensor
from tastemaker.types import Rollout, Rows

AT_ONCE = 256
"""States in one forward pass, as in the public code; their number does not change the gradient."""


def train_value(session: Session, rollout: Rollout, part: RoundPart, selected: Tensor) -> dict[str, float]:
    """The value network's own steps of a round: mean squared error on a batch of states each.

    States are the kept steps of the round's selected images, `selected` [B] bool; `rollout` holds this process' images.
    Their targets are the images' rewards. Which states a step has depends on counters alone, and not on the processes.
    Returns the mean loss, or nothing where the algorithm asks for no such steps or no image is selected. Raises
    DivergedError before a loss or gradient that is not finite reaches the weights.
    """
    training = session.config.algorithm.requirements.value
    images, kept = selected.nonzero().flatten().tolist(), rollout.kept
    if training is None or training.batch is None or not images:
        return {}
    own, losses = {index: number for number, index in enumerate(part.indices)}, []
    draw = part.draw
    for states in value_states(draw.seed, draw.round, len(images) * kept, training.batch, training.updates):
        found = [(own[image], state % kept) for state in states if (image := images[state // kept]) in own]
        losses.append(_step(session, _rows(rollout, found), training))
    return {"value_loss": sum(losses) / len(losses)}


def _rows(rollout: Rollout, states: Sequence[tuple[int, int]]) -> Rows:
    image, step_index = torch.tensor(states, dtype=torch.int64, device=rollout.device).reshape(-1, 2).unbind(dim=1)
    return Rows(rollout, image, step_index)


def _step(session: Session, rows: Rows, training: ValueTraining) -> float:
    """One step on this process' rows of the `training.batch` states; returns their mean loss over all processes."""
    accelerator, value, count = session.accelerator, session.task.value, training.batch or 1
    assert value is not None
    parts = batches(len(rows), AT_ONCE)
    spare = not parts
    if spare:
        rows, parts = placeholder(rows), batches(1, 1)
    total = torch.zeros((), device=accelerator.device)
    for number, part in enumerate(parts):
        with accelerator.no_sync(value) if number < len(parts) - 1 else nullcontext():
            step = rows.select(slice(part.start, part.stop)).transitions()
            loss = (0 if spare else 1) * (session.task.estimate(step) - step.advantage).square().sum()
            # Wrappers average over processes: times their number it is a mean over all states.
            accelerator.backward(loss * accelerator.num_processes / count)
        total += loss.detach() / count
    limit = session.config.optimizer.clip_norm if training.clip_norm == "model" else training.clip_norm
    norm = clip(session, value, limit)
    check_finite(session, total, [norm])
    set_rate(session, 0)
    session.optimizer.step()
    session.optimizer.zero_grad()
    return tensor(accelerator.reduce(total, "sum")).item()
