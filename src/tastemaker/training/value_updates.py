"""Optimizer steps of a value network alone, on states of the round, before its policy learns (DPOK's public code)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from tastemaker.diffusion.sampler import batches
from tastemaker.training.draws import value_states
from tastemaker.training.session import Session
from tastemaker.training.update import check_finite, clip, placeholder, set_rate, tensor
from tastemaker.types import Rollout, Rows

AT_ONCE = 256
"""States in one forward pass, as in the public code; their number does not change the gradient."""


def train_value(session: Session, rollout: Rollout, mine: Sequence[int], selected: Tensor) -> dict[str, float]:
    """`algorithm.value_updates` steps of mean squared error on `algorithm.value_batch` states each.

    States are the kept steps of the round's selected images, `selected` [samples] bool; `rollout` holds this process'
    images, whose places in the round are `mine`. Their targets are the images' rewards. Which states a step has
    depends on counters alone, and not on the processes. Returns the mean loss, or nothing where no image is selected.
    Raises DivergedError before a loss or gradient that is not finite reaches the weights.
    """
    algorithm: Any = session.config.algorithm
    places, kept = selected.nonzero().flatten().tolist(), rollout.logp.shape[1]
    if not places or rollout.draw is None:
        return {}
    own, losses = {place: number for number, place in enumerate(mine)}, []
    count = algorithm.value_batch
    for states in value_states(
        rollout.draw.seed, rollout.draw.round, len(places) * kept, count, algorithm.value_updates
    ):
        found = [(own[place], state % kept) for state in states if (place := places[state // kept]) in own]
        losses.append(_step(session, _rows(rollout, found), count))
    return {"value_loss": sum(losses) / len(losses)}


def _rows(rollout: Rollout, states: Sequence[tuple[int, int]]) -> Rows:
    image, place = torch.tensor(states, dtype=torch.int64, device=rollout.x0.device).reshape(-1, 2).unbind(dim=1)
    return Rows(rollout, image, place)


def _step(session: Session, rows: Rows, count: int) -> float:
    """One step on this process' rows of the `count` states; returns their mean loss over all processes."""
    accelerator, value = session.accelerator, session.task.value
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
    norm = clip(session, value, session.config.algorithm.value_clip_norm)  # pyright: ignore[reportAttributeAccessIssue]
    check_finite(session, total, [norm])
    set_rate(session, 0)
    session.optimizer.step()
    session.optimizer.zero_grad()
    return tensor(accelerator.reduce(total, "sum")).item()
