"""Early stopping: a run ends when a metric of its evaluations has fallen too far, and keeps the model before that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tastemaker.errors import ConfigError
from tastemaker.training.session import Session
from tastemaker.training.update import tensor


def should_stop(session: Session, record: Mapping[str, Any]) -> bool:
    """Whether an evaluation's metric is too far below its highest value so far; otherwise the weights are kept.

    Raises ConfigError where evaluations have no such metric.
    """
    options, state = session.config.early_stop, session.state
    if options.metric is None or session.kept is None:
        return False
    if f"eval/{options.metric}" not in record:
        known = [name.removeprefix("eval/") for name in record if name.startswith("eval/")]
        raise ConfigError(f"early_stop.metric is {options.metric}, but evaluations of this run have {', '.join(known)}")
    value = float(record[f"eval/{options.metric}"])
    state.best_metric = value if state.best_metric is None else max(value, state.best_metric)
    if value < state.best_metric - options.min_delta:
        session.display.log(
            f"stopping after round {state.round}: {options.metric} is {value:.3f}, more than {options.min_delta:g} "
            f"below its best value of {state.best_metric:.3f}; the run keeps the model of round {state.kept_round}"
        )
        return True
    state.kept_round = state.round
    with session.averaged():
        session.kept.sync()
    return False


def any_process(session: Session, stop: bool) -> bool:
    """Whether any process should stop: only the first one evaluates."""
    accelerator = session.accelerator
    if session.config.early_stop.metric is None or accelerator.num_processes == 1:
        return stop
    return bool(tensor(accelerator.gather(torch.tensor([int(stop)], device=accelerator.device))).max().item())
