"""What a run's checkpoint holds, and what a resumed run is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tastemaker.data.captioned_images import digest
from tastemaker.data.prompts import BUILTIN
from tastemaker.runs import checkpoint
from tastemaker.runs.checkpoint import Training
from tastemaker.runs.fingerprint import fingerprint
from tastemaker.training.session import Session


def save_checkpoint(session: Session, folder: Path) -> None:
    """Saves a checkpoint in the run's folder. All processes call it, since each has a part of a sharded network."""
    config, accelerator = session.config, session.accelerator
    own, write = circumstances(session), accelerator.is_main_process
    checkpoint.save(folder, session.state, training_state(session), own, config.checkpoint, write=write)


def circumstances(session: Session) -> dict[str, Any]:
    """What a resumed run is compared with."""
    given = {"pairs": session.pairs, "the prior images": session.prior_images}
    digests = {name: data.digest for name, data in given.items() if data is not None}
    lists = {"prompts": session.config.prompts, "evaluation.unseen": session.config.evaluation.unseen}
    for (name, source), found in zip(lists.items(), (session.prompts, session.unseen), strict=True):
        # A file may have been changed, or a data set; what ships with the package is its version's.
        if found is not None and source not in BUILTIN:
            digests[f"what {name} holds"] = digest([found.prompts, found.weights])
    for what, reward in {"the server's reward": session.reward, **_looking(session)}.items():
        if (identity := reward.identity()) is not None:
            digests[what] = identity
    return fingerprint(session.config, session.accelerator) | digests


def _looking(session: Session) -> dict[str, Any]:
    """The rewards that are only evaluated, without the addresses of servers, which may move."""
    return {f"evaluation.rewards[{place}]": reward for place, reward in enumerate(session.others.values())}


def training_state(session: Session) -> Training:
    """Weights, optimizer, loss scaler and copies of weights, as a checkpoint takes and restores them."""
    optimizer: Any = session.optimizer
    weights = session.model.weights.trainable()
    if session.task.value is not None:
        value = session.accelerator.unwrap_model(session.task.value)
        weights |= {f"value.{name}": parameter for name, parameter in value.named_parameters()}
    copies: dict[str, Any] = {}
    held = session.model.weights.held
    if session.config.reference.every and held is not None:
        copies |= {f"reference.{name}": value for name, value in held.copies.items()}
    if session.average is not None:
        copies |= {f"average.{name}": value for name, value in session.average.copies.items()}
    if session.sampling_average is not None:
        copies |= {f"sampling.{name}": value for name, value in session.sampling_average.copies.items()}
    if session.kept is not None:
        copies |= {f"kept.{name}": value for name, value in session.kept.copies.items()}
    return Training(weights, getattr(optimizer, "optimizer", optimizer), session.accelerator.scaler, copies)
