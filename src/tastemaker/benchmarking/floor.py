"""The floor of a round: the network calls that it cannot do without, counted from its settings, and their time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tastemaker.benchmarking.trace import clock
from tastemaker.config.schema import Config
from tastemaker.diffusion.sampler import batches
from tastemaker.training.plan import Calls, compared_calls, prepared_rows, round_calls
from tastemaker.training.session import Session
from tastemaker.training.setup import candidate_steps
from tastemaker.training.static_rows import training_rows
from tastemaker.training.value_updates import AT_ONCE

CALLS = 4
"""Bare calls of each shape, before a round and again after it: a single one is too noisy to stand for many."""


@dataclass(frozen=True)
class Needed:
    """What a round needs."""

    network: Calls
    """Calls of the network, those of the reference among them."""
    value: Calls
    """Calls of the value network."""
    compared: Mapping[int, int] = field(default_factory=dict)
    """Of the network's calls without a graph those over the rows that learn, of the reference for instance."""


@dataclass(frozen=True)
class Floor:
    """Seconds that the network calls of one round take by themselves."""

    forward: float
    """Of the network without a graph."""
    backward: float
    """Of the network with a graph and its backward pass."""
    value: float = 0.0
    """Of the value network."""
    compared: float = 0.0
    """Of `forward`, what is over the rows that learn."""

    def of_selected(self, share: float) -> Floor:
        """Where only this share of the images learns."""
        return Floor(
            self.forward - (1 - share) * self.compared, share * self.backward, share * self.value, share * self.compared
        )

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.value


def needed_calls(config: Config, stochastic: Sequence[int], number: int) -> Needed:
    """The calls that round `number`, from 1, cannot do without, where all images are selected (`Floor.of_selected`).

    What the algorithm compares with (the reference, and what the network said before the first update) is counted, and
    what is computed again to save memory is not. `stochastic` are the sampler steps that have noise.
    """
    calls, needs = round_calls(config, stochastic, number), config.algorithm.requirements
    compared = compared_calls(config, stochastic, number, calls.backward)
    network = Calls(dict(Counter(calls.forward) + compared), calls.backward)
    if needs.value is None:
        return Needed(network, Calls({}, {}), compared)
    estimates = Counter(len(part) for part in prepared_rows(config, stochastic, number))
    if needs.value.batch is None:  # it learns in the policy's updates, from their rows
        own = {rows // training_rows(config): count for rows, count in calls.backward.items()}
    else:
        parts = batches(needs.value.batch, AT_ONCE)
        own = {rows: count * needs.value.updates for rows, count in Counter(map(len, parts)).items()}
    return Needed(network, Calls(dict(estimates), own), compared)


def calls_of_round(session: Session) -> Needed:
    """Those of the session's next round. From the settings, not observed."""
    return needed_calls(session.config, candidate_steps(session.task.sde), session.state.round + 1)


def measure_floor(session: Session, needed: Needed) -> Floor:
    """Seconds of a round's network calls alone, each shape's from the mean of CALLS bare calls."""

    def total(calls: Mapping[int, int], seconds: Callable[[Session, int, bool], float], grad: bool) -> float:
        return sum(count * seconds(session, rows, grad) for rows, count in calls.items())

    compared = total(needed.compared, _network_seconds, False)
    others = Counter(needed.network.forward) - Counter(needed.compared)
    floor = Floor(
        total(others, _network_seconds, False) + compared,
        total(needed.network.backward, _network_seconds, True),
        total(needed.value.forward, _value_seconds, False) + total(needed.value.backward, _value_seconds, True),
        compared,
    )
    session.optimizer.zero_grad()
    return floor


def _network_seconds(session: Session, rows: int, grad: bool) -> float:
    """Mean seconds of a network call [rows,*D], with its backward pass where `grad`.

    Of a compiled network's call that is filled up, the share of the rows that were asked for.
    """
    model, (x, t) = session.model, _states(session, rows)
    cond = model.encode([""] * rows, 1.0)
    seconds = _mean_seconds(session, lambda: model.predict(x, t, cond), grad)
    return seconds * rows / (rows if session.static is None else session.static.filled(rows, grad))


def _value_seconds(session: Session, rows: int, grad: bool) -> float:
    """The same of the value network."""
    value, (x, t) = session.task.value, _states(session, rows)
    assert value is not None
    pooled = session.task.value_states == "pooled"
    states = session.model.encode([""] * rows, 1.0, pooled=pooled)[session.task.value_states]
    given = states.unsqueeze(1) if pooled else states
    return _mean_seconds(session, lambda: value(x, t, given), grad)


def _states(session: Session, rows: int) -> tuple[Tensor, Tensor]:
    """Latents [rows,*D] and times [rows] of the sampler's steps."""
    device = session.accelerator.device
    steps = torch.arange(rows, device=device) % len(session.task.sde)
    return torch.randn(rows, *session.model.latent_shape, device=device), session.task.sde.grid.times.to(device)[steps]


def _mean_seconds(session: Session, call: Callable[[], Tensor], grad: bool) -> float:
    begin, device = 0.0, session.accelerator.device
    for number in range(CALLS + 1):
        if number == 1:  # the one before finds the memory, or compiles, and is not counted
            begin = clock(device)
        with session.inference(), torch.set_grad_enabled(grad):
            out = call()
            if grad:
                out.sum().backward()
    return (clock(device) - begin) / CALLS
