"""A guidance weight that the network is given as an input, as by FLUX.1-dev."""

from __future__ import annotations

from tastemaker.diffusion.model import Model
from tastemaker.errors import ModelError
from tastemaker.models.flow_transformer import FlowTransformer


def set_embedded_guidance(model: Model, weight: float | None) -> None:
    """Gives the model's network this weight from now on; None leaves the family's own.

    Raises ModelError where the network takes none.
    """
    if weight is None:
        return
    if not isinstance(model, FlowTransformer) or model.embedded_guidance is None:
        raise ModelError(
            f"sampling.embedded_guidance is {weight:g}, but the network of this model takes no guidance weight as an "
            "input: leave it out, and set sampling.guidance"
        )
    model.embedded_guidance = weight
