"""What the settings of sampling say of the model itself. All commands and the Python API set their models up here."""

from __future__ import annotations

from tastemaker.config.schema import Sampling
from tastemaker.diffusion.model import Model
from tastemaker.errors import ModelError


def set_up(model: Model, sampling: Sampling) -> None:
    """Has a model make images as the settings say from now on.

    Where the settings have None the size stays what it is, and the embedded guidance is the model's own, also after an
    earlier call. Raises ModelError where the model cannot make images of that size, or its network takes no embedded
    guidance.
    """
    model.resize(sampling.height, sampling.width)
    model.negative_prompt = sampling.negative_prompt
    if sampling.embedded_guidance is not None and model.embedded_guidance is None:
        raise ModelError(
            f"the embedded guidance is {sampling.embedded_guidance:g}, but the network of this model takes no guidance "
            "weight as an input: leave it out, and set the guidance"
        )
    model.embedded_guidance = sampling.embedded_guidance
