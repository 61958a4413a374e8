"""Early stopping: a run ends when its evaluations have become too bad, and keeps the model before that."""

from __future__ import annotations

import torch

from tastemaker.config.schema import Config
from tastemaker.training.evaluations import RunEvaluation
from tastemaker.training.over_optimisation import metric
from tastemaker.training.session import Session
from tastemaker.training.update import tensor


def can_stop(config: Config) -> bool:
    """Whether evaluations may end a run."""
    return config.early_stop.metric is not None or config.early_stop.over_optimisation


def should_stop(session: Session, evaluation: RunEvaluation) -> bool:
    """Whether an evaluation ends the run: its metric is too far below its highest value so far, or it has a warning.

    Otherwise its weights are kept, where nothing has fallen. Raises ConfigError where evaluations have no such metric.
    """
    options, state = session.config.early_stop, session.state
    if session.kept is None:
        return False
    if options.metric is not None:
        value = metric(evaluation, session, "early_stop.metric", options.metric)
        state.best_metric = value if state.best_metric is None else max(value, state.best_metric)
        if value < state.best_metric - options.min_delta:
            session.display.log(
                f"stopping after round {state.round}: {options.metric} is {value:.3f}, more than {options.min_delta:g} "
                f"below its best value of {state.best_metric:.3f}; the run keeps the model of round {state.kept_round}"
            )
            return True
    if options.over_optimisation and evaluation.look is not None and not evaluation.look.sound:
        if evaluation.look.warnings:
            session.display.log(
                f"stopping after round {state.round} because of over-optimisation; the run keeps the model of round "
                f"{state.kept_round}"
            )
        return bool(evaluation.look.warnings)
    state.kept_round = state.round
    with session.averaged():
        session.kept.sync()
    return False


def any_process(session: Session, stop: bool) -> bool:
    """Whether any process should stop: only the first one evaluates."""
    accelerator = session.accelerator
    if not can_stop(session.config) or accelerator.num_processes == 1:
        return stop
    return bool(tensor(accelerator.gather(torch.tensor([int(stop)], device=accelerator.device))).max().item())
