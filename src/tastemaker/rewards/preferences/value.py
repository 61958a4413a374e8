"""A value network that begins as a reward model: what the thesis' PPO starts from (sections 5.3, 6.9)."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from tastemaker.diffusion.model import Model
from tastemaker.errors import RewardError
from tastemaker.models.attention_pool import AttentionPool
from tastemaker.models.unet_encoder import UNetEncoder, told_sizes
from tastemaker.models.value import UNetValue
from tastemaker.rewards.preferences.backbones import DiffusionBackbone
from tastemaker.rewards.preferences.model import RewardModel
from tastemaker.rewards.preferences.reward import load_reward_model, on_meta, require_latents


def value_from(model: RewardModel) -> UNetValue:
    """A trainable value network [N,*D], [N], [N,L,C] -> [N] whose estimates are at first the standardised rewards.

    Of an ensemble it begins as the first member. At the training time at which the reward model scores, and without
    noise, both are the same; at others the reward model was not asked before. Raises RewardError for a reward model
    that is not of kind unet.
    """
    head = model.heads[0]
    backbone = model.backbone
    if not (
        isinstance(backbone, DiffusionBackbone)
        and isinstance(backbone.encoder, UNetEncoder)
        and isinstance(head, AttentionPool)
    ):
        raise RewardError(
            f"a value network begins as a reward model of kind unet, and this one is of kind "
            f"{model.architecture.described}: train one with --kind unet"
        )
    if told_sizes(backbone.model.network):
        raise RewardError(
            f"a value network cannot begin as a reward model on {model.architecture.model}, whose U-Net is told the "
            "size of images and a pooled prompt, as SDXL's is: leave algorithm.value_from out"
        )
    made = UNetValue(backbone.model.network, backbone.text_channels)
    made.pool = copy.deepcopy(head).requires_grad_(True)
    mean, std = model.scale.members[0]
    with torch.no_grad():
        made.pool.out.weight.div_(std * model.scale.std)
        made.pool.out.bias.sub_(mean + std * model.scale.mean).div_(std * model.scale.std)
    return made.to(backbone.device)


def value_from_folder(folder: str, model: Model) -> UNetValue:
    """`value_from` of the reward model in a folder, for a policy with the reward model's latents and text encoder.

    Raises RewardError where these differ, and what `load_reward_model` raises.
    """
    reward_model = load_reward_model(Path(folder))
    made = value_from(reward_model)
    assert isinstance(reward_model.backbone, DiffusionBackbone)  # value_from refuses others
    require_latents(reward_model, folder, model)
    if not _same_texts(reward_model.backbone.model, model):
        raise RewardError(
            f"a value network cannot begin as the reward model {folder}, whose base model "
            f"{reward_model.architecture.model} has another text encoder than the model that is trained: train a "
            "reward model on that one"
        )
    return made.to(model.device)


def _same_texts(one: Model, other: Model) -> bool:
    """Whether two models give the empty prompt the same states, but for what half precision rounds."""
    a, b = (model.encode([""], 1.0).states["text"].float() for model in (one, other))
    return a.shape == b.shape and (on_meta(other) or torch.allclose(a.cpu(), b.cpu(), rtol=0.02, atol=0.02))
