"""The value network that an algorithm asks for: a new one, or one that begins as a reward model."""

from __future__ import annotations

from torch import nn

from tastemaker.algorithms.requirements import ValueTraining
from tastemaker.diffusion.model import Model
from tastemaker.models.value import value_network
from tastemaker.rewards.preferences.value import value_from_folder


def value_network_for(training: ValueTraining, model: Model) -> nn.Module:
    """A value network [N,*D], [N], [N,L,C] -> [N] on the model's device, in float32.

    Call it before the model gets its adapters, which a copy of its U-Net would have. Raises RewardError where the
    reward model as which it should begin cannot be loaded or does not fit the model.
    """
    if training.reward_model is None:
        return value_network(training.kind, model)
    return value_from_folder(training.reward_model, model)
