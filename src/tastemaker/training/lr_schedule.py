"""The learning rate of each update: a warm-up of our own, and what diffusers' schedulers make of it after that."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from diffusers.optimization import get_scheduler

from tastemaker.config.schema import Config, Optimizer

if TYPE_CHECKING:
    from tastemaker.training.session import Session


def updates_before(session: Session) -> int:
    """Updates of all earlier rounds. Those that had no rows count, but where their number is the selection's."""
    options = session.config.optimizer
    if options.images_per_update is not None:
        return session.state.updates
    return session.state.round * options.updates * options.inner_epochs


def warmed(count: int, warmup: int) -> float:
    """The share of its learning rate that update number `count` (from 0) has in a warm-up of `warmup` updates.

    (count + 1) / (warmup + 1), so that the first update has a rate greater than 0, which in diffusers it has not.
    """
    return min(1.0, (count + 1) / (warmup + 1))


def multiple(config: Config, count: int) -> float:
    """The multiple of `optimizer.lr` that update number `count` of a run (from 0) has."""
    o = config.optimizer
    share = warmed(count, o.warmup)
    if o.lr_scheduler == "piecewise_constant" or (o.lr_scheduler != "constant" and count >= o.warmup):
        return share * _after(o, config.rounds * o.updates * o.inner_epochs)(count)
    return share


@cache
def _after(options: Optimizer, updates: int) -> Callable[[int], float]:
    """diffusers' multiple of the rate by update, for a run of so many updates."""
    unused = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_scheduler(
        options.lr_scheduler,
        unused,
        step_rules=options.step_rules,
        num_warmup_steps=options.warmup,
        num_training_steps=updates,
    )
    return scheduler.lr_lambdas[0]
