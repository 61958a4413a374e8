"""The model that a policy is compared with: the one that training started from, or one that follows it."""

from __future__ import annotations

from tastemaker.config.schema import Config
from tastemaker.diffusion.model import Model
from tastemaker.models.weight_copy import WeightCopy
from tastemaker.training.session import Session


def start_reference(config: Config, model: Model) -> None:
    """Lets the model keep a copy of its trainable weights, where the reference cannot do without.

    Adapters that stay what they were need none, since they can be switched off.
    """
    if config.algorithm.requirements.reference and (config.tuning.mode == "full" or config.reference.every):
        model.weights.held = WeightCopy(model.weights.trainable())


def sync_reference(session: Session) -> None:
    """Moves the reference to the weights as they are now, where the rounds done say so."""
    every = session.config.reference.every
    if every and session.state.round % every == 0:
        held = session.model.weights.held
        assert held is not None  # start_reference made it
        held.sync()
