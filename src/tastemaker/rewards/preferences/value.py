"""A value network that begins as a reward model: what the thesis' PPO starts from (sections 5.3, 6.9)."""

from __future__ import annotations

import copy

import torch

from tastemaker.errors import RewardError
from tastemaker.models.attention_pool import AttentionPool
from tastemaker.models.value import UNetValue
from tastemaker.rewards.preferences.backbones import UNetBackbone
from tastemaker.rewards.preferences.model import RewardModel


def value_from(model: RewardModel) -> UNetValue:
    """A trainable value network [N,*D], [N], [N,L,C] -> [N] whose estimates are at first the standardised rewards.

    Of an ensemble it begins as the first member. At the training time at which the reward model scores, and without
    noise, both are the same; at others the reward model was not asked before. Raises RewardError for a reward model
    that is not of kind unet.
    """
    head = model.heads[0]
    if not isinstance(model.backbone, UNetBackbone) or not isinstance(head, AttentionPool):
        raise RewardError(
            f"a value network begins as a reward model of kind unet, and this one is of kind "
            f"{model.architecture.described}: train one with --kind unet"
        )
    made = UNetValue(model.backbone.model.network, model.backbone.text_channels)
    made.pool = copy.deepcopy(head).requires_grad_(True)
    mean, std = model.scale.members[0]
    with torch.no_grad():
        made.pool.out.weight.div_(std * model.scale.std)
        made.pool.out.bias.sub_(mean + std * model.scale.mean).div_(std * model.scale.std)
    return made.to(model.backbone.device)
