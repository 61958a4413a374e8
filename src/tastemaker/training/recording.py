"""What a run records of its rounds and evaluations: metrics.jsonl, evaluation images, and the trackers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tastemaker.evaluation.images import save_grid, to_pil
from tastemaker.report.data import KEPT_ROUND
from tastemaker.runs.metrics import append_metrics
from tastemaker.training.evaluations import RunEvaluation
from tastemaker.training.session import Session
from tastemaker.training.trackers import Images, tracking


def timings(session: Session, began: float) -> dict[str, float]:
    """Seconds of the round that ends now, and of its parts, which are counted from zero again.

    Compiling the network, which later rounds need not do, is a part beside the round's seconds.

    A record is on disk before its checkpoint, so that a kill between the two loses neither: the seconds of saving
    stand in the record of the round after.
    """
    parts = {f"seconds/{name}": value for name, value in session.seconds.items()}
    session.seconds.clear()
    return {"seconds/round": time.perf_counter() - began - parts.get("seconds/compile", 0.0), **parts}


def record_round(session: Session, folder: Path, record: dict, evaluation: RunEvaluation | None) -> None:
    """Writes and tracks a round's figures, and its evaluation where it has one."""
    append_metrics(folder / "metrics.jsonl", record)
    session.trackers.log({k: v for k, v in record.items() if k != "round"}, session.state.round)
    if evaluation is not None:
        record_evaluation(session, folder, evaluation)
        track_evaluation(session, evaluation)


def record_evaluation(session: Session, folder: Path, evaluation: RunEvaluation) -> None:
    """Writes an evaluation's figures and image grids into the run's folder."""
    append_metrics(folder / "metrics.jsonl", _evaluation_record(session, evaluation))
    for kind, shown in {"round": evaluation.seen, "unseen": evaluation.unseen}.items():
        if shown is not None:
            reward = evaluation.reward(shown)
            save_grid(folder, session.state.round, shown.images, shown.draw, reward, shown.correct, kind)


def _evaluation_record(session: Session, evaluation: RunEvaluation) -> dict[str, Any]:
    record = evaluation.record(session.state)
    return record if session.kept is None else record | {KEPT_ROUND: session.state.kept_round}


def track_evaluation(session: Session, evaluation: RunEvaluation, *, late: bool = False) -> None:
    """Sends an evaluation's figures and images to the trackers, at the step of its round."""
    trackers, number = session.trackers, session.state.round
    if not trackers.active:
        return
    record = _evaluation_record(session, evaluation)
    trackers.log({name: value for name, value in record.items() if name != "evaluation"}, number, late=late)
    for prefix, shown in {"eval": evaluation.seen, "eval/unseen": evaluation.unseen}.items():
        if shown is not None:
            rewards = zip(shown.draw.prompts, evaluation.reward(shown).tolist(), strict=True)
            captions = [f"{prompt} ({reward:.3g})" for prompt, reward in rewards]
            images = Images(to_pil(shown.images), captions, session.config.evaluation.per_prompt)
            trackers.log_images(f"{prefix}/images", images, number, late=late)
            trackers.log_table(f"{prefix}/table", evaluation.table(shown), number, late=late)


@contextmanager
def tracked(session: Session, folder: Path, first: int) -> Iterator[None]:
    """Inside it the session's trackers are started, those that write into the run's folder excepted."""
    main, log = session.accelerator.is_main_process, session.display.log
    with tracking(session.config, folder, first=first, main=main, notify=log) as session.trackers:
        yield


def reward_scale(session: Session) -> str:
    """For people and programs: what a combined reward is made of, and its scale. A resumed run has it by its state."""
    state = session.state
    scale = {
        setting: {part: {"mean": mean, "std": std} for part, (mean, std) in found.items()}
        for setting, found in state.base_parts.items()
    }
    whole = {"mean": state.base_mean, "std": state.base_std}
    base = {"reward": whole, "parts": scale}
    return json.dumps({"reward": session.config.reward, "base": base}, indent=1) + "\n"
