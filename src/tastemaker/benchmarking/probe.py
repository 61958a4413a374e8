"""Seconds of the pieces of a run's work on this machine, measured in a short probe (`train --dry-run`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from tastemaker.benchmarking.temporary import temporary_session
from tastemaker.benchmarking.trace import clock
from tastemaker.config.schema import Config
from tastemaker.rewards.base import combined, leaf_scores
from tastemaker.training.cost import Seconds, sizes
from tastemaker.training.plan import round_calls
from tastemaker.training.session import Session
from tastemaker.training.setup import candidate_steps

CALLS = 3
"""Measured calls of each piece, after one that is not: the median counts."""
ROUNDS = 100
"""Rounds whose network calls are measured: windows and truncations differ from round to round."""


def measure(config: Config, processes: int = 1, reward: float | None = None) -> Seconds:
    """Loads the model and measures each piece of a round of `config` with the batch sizes of one of `processes`.

    Takes a few calls of each size, and writes nothing. `reward` are the seconds of scoring an image; None measures
    them. Raises a TastemakerError where the run could not start, and RewardError where the reward fails on an image.
    """
    with temporary_session(config) as session:
        return measure_session(session, clock, processes, reward)


def measure_session(
    session: Session, clock: Callable[[torch.device], float], processes: int = 1, reward: float | None = None
) -> Seconds:
    """The same of a session that is there, whose optimizer takes steps. `clock` gives the seconds of a device."""
    config, model = session.config, session.model
    stochastic = candidate_steps(session.task.sde)
    numbers = range(1, min(config.rounds, ROUNDS) + 1)
    plain, graph = sizes(round_calls(config, stochastic, number, processes) for number in numbers)
    device = session.accelerator.device
    own = config.sampling.samples // processes
    count = min(own, config.optimizer.rows if config.pathwise else config.sampling.images_per_batch)
    latents = torch.randn(count, *model.latent_shape, device=device)
    prompts = [session.prompts.prompts[0]] * count
    with torch.no_grad():
        images = model.decode(latents)

    def timed(call: Callable[[], object]) -> float:
        found = []
        for _ in range(CALLS + 1):
            begin = clock(device)
            call()
            found.append(clock(device) - begin)
        return sorted(found[1:])[CALLS // 2]

    def network(rows: int, grad: bool) -> None:
        x = torch.randn(rows, *model.latent_shape, device=device)
        t = session.task.sde.grid.times.to(device)[torch.arange(rows, device=device) % len(session.task.sde)]
        cond = model.encode([""] * rows, 1.0)
        with session.inference(), torch.set_grad_enabled(grad):
            out = model.predict(x, t, cond)
            if grad:
                out.sum().backward()

    def decode(grad: bool) -> None:
        with torch.set_grad_enabled(grad):
            # With a graph one image after the other, as a round decodes them (diffusion/backprop.py: shown).
            shown = model.decode((latents[:1] if grad else latents).clone().requires_grad_(grad))
            if grad:
                shown.sum().backward()

    def score() -> None:
        seen = images.clone().requires_grad_(config.pathwise)
        with torch.set_grad_enabled(config.pathwise):
            rewards = {config.reward: session.reward}
            found = combined(rewards, leaf_scores(rewards, seen, prompts, latents), prompts)[config.reward].total
            if found.requires_grad:
                found.sum().backward()

    if config.algorithm.needs == "pairs":
        reward = 0.0
    found = Seconds(
        forward={rows: timed(partial(network, rows, False)) for rows in plain},
        backward={rows: timed(partial(network, rows, True)) for rows in graph},
        decode=timed(partial(decode, False)) / count,
        decode_backward=timed(partial(decode, True)) if config.pathwise else 0.0,
        reward=timed(score) / count if reward is None else reward,
        update=timed(session.optimizer.step),
    )
    session.optimizer.zero_grad()
    return found
