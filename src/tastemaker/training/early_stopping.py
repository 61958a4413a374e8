"""Early stopping: a run ends when a measure of its evaluations has fallen too far, and leaves the model before that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tastemaker.errors import ConfigError
from tastemaker.training.session import Session
from tastemaker.training.update import tensor


def fell(session: Session, record: Mapping[str, Any]) -> bool:
    """Whether the watched measure of an evaluation is too far below its highest so far; keeps the weights otherwise.

    Raises ConfigError where evaluations have no such measure.
    """
    watch, state = session.config.evaluation.watch, session.state
    if watch is None or session.kept is None:
        return False
    if f"eval/{watch}" not in record:
        known = [name.removeprefix("eval/") for name in record if name.startswith("eval/")]
        raise ConfigError(f"evaluation.watch is {watch}, but evaluations of this run measure {', '.join(known)}")
    value = float(record[f"eval/{watch}"])
    state.watched = value if state.watched is None else max(value, state.watched)
    if value < state.watched - session.config.evaluation.fall:
        session.display.say(
            f"stopping after round {state.round}: {watch} is {value:.3f}, more than {session.config.evaluation.fall:g} "
            f"below the {state.watched:.3f} that it was; what is left is the model of round {state.kept_round}"
        )
        return True
    state.kept_round = state.round
    with session.averaged():
        session.kept.move()
    return False


def agreed(session: Session, ended: bool) -> bool:
    """The answer of the process that evaluates, on all of them."""
    accelerator = session.accelerator
    if session.config.evaluation.watch is None or accelerator.num_processes == 1:
        return ended
    return bool(tensor(accelerator.gather(torch.tensor([int(ended)], device=accelerator.device))).max().item())
