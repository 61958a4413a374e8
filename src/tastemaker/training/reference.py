"""The model that a policy is compared with: the one that training started from, or one that follows it."""

from __future__ import annotations

from typing import Any

from tastemaker.config.schema import Config
from tastemaker.models.weight_copy import WeightCopy
from tastemaker.training.session import Session


def start_reference(config: Config, model: Any) -> None:
    """Lets the model keep a copy of its trainable weights, where the reference cannot do without.

    Adapters that stay what they were need none, since they can be switched off.
    """
    if config.compares and (config.tuning.mode == "full" or config.reference.every):
        model.held = WeightCopy(model.trainable())


def sync_reference(session: Session) -> None:
    """Moves the reference to the weights as they are now, where the rounds done say so."""
    every = session.config.reference.every
    if every and session.state.round % every == 0:
        session.model.held.sync()
