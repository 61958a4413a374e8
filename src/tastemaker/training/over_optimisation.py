"""A run's evaluations compared with its earlier ones: warnings of over-optimisation, and the best model on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tastemaker.errors import ConfigError
from tastemaker.evaluation.over_optimisation import History, Measured, begin, look
from tastemaker.runs import atomic, sharding
from tastemaker.training.evaluations import RunEvaluation
from tastemaker.training.session import Session

BEST = "best"
"""Folder of a run with its best model."""


def watched(session: Session, evaluation: RunEvaluation) -> RunEvaluation:
    """The evaluation with what it says beside those before it, of which a person is told at once."""
    state, options = session.state, session.config.over_optimisation
    now = evaluation.measured(state.round)
    if state.watched is None:
        if state.round == 0:  # runs of versions that did not watch have nothing to be compared with
            state.watched = begin(now).plain()
        return evaluation
    history = History.of(state.watched)
    if not _same_images(history, now):
        session.display.log("over-optimisation is not watched any more: evaluations have other images than the first")
        state.watched = None
        return evaluation
    found = look(history, now, options.tolerance, options.kl_limit)
    state.watched = found.history.plain()
    if found.new:
        session.display.log(f"{found.sentence(found.new)}; see docs/guides/over-optimisation.md")
    return replace(evaluation, look=found)


def _same_images(history: History, now: Measured) -> bool:
    counts = {name: len(one.values) for name, one in now.held_out.items()}
    trained = None if now.trained is None else len(now.trained)
    before = None if history.trained is None else len(history.trained)
    return trained == before and counts == {name: len(one.values) for name, one in history.base.items()}


def keep_best(session: Session, folder: Path, evaluation: RunEvaluation) -> None:
    """Writes the model into the run's folder `best` where it is the best so far (`over_optimisation.keep_best`).

    To be called by all processes that have evaluated. Raises ConfigError where evaluations have no such metric.
    """
    name, state = session.config.over_optimisation.keep_best, session.state
    if name is None:
        return
    value = metric(evaluation, session, "over_optimisation.keep_best", name)
    sound = evaluation.look is None or evaluation.look.sound
    if not sound or (state.best_value is not None and value <= state.best_value):
        return
    state.best_value, state.best_round = value, state.round
    main, network = session.accelerator.is_main_process, session.model.network
    with sharding.whole(network, keep=main), session.averaged():
        if not main:
            return
        final, temporary = folder / BEST, folder / f".tmp-{BEST}"
        session.model.weights.save(temporary)
        about = {"round": state.round, "metric": name, "value": value}
        atomic.write(temporary / "best.json", (json.dumps(about, indent=1) + "\n").encode())
        if final.exists():
            atomic.remove(final)
        atomic.move(temporary, final)


def metric(evaluation: RunEvaluation, session: Session, setting: str, name: str) -> float:
    """A metric of an evaluation by the name that a setting has. Raises ConfigError where there is none."""
    record = evaluation.record(session.state)
    if f"eval/{name}" not in record:
        known = [key.removeprefix("eval/") for key in record if key.startswith("eval/")]
        raise ConfigError(f"{setting} is {name}, but evaluations of this run have {', '.join(known)}")
    return float(record[f"eval/{name}"])
