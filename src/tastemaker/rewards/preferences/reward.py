"""A trained reward model as a reward: `--reward runs/rm`, with options as in `runs/rm:guidance=2,penalty=0.5`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from tastemaker.diffusion.model import Model
from tastemaker.errors import RewardError
from tastemaker.rewards.base import FunctionReward, RewardFunction
from tastemaker.rewards.preferences.backbones import DiffusionBackbone, latents_digest, load_backbone
from tastemaker.rewards.preferences.files import Description, load_head, read
from tastemaker.rewards.preferences.heads import new_head
from tastemaker.rewards.preferences.model import RewardModel, spread
from tastemaker.rewards.preferences.names import DESCRIPTION, Options, is_reward_model


def preference_reward(folder: Path, options: Options, name: str) -> FunctionReward:
    """The reward of a folder that `tastemaker reward train` made. Raises RewardError, ModelError.

    Its answers are standardised: on the images that the model was standardised by, their mean is 0 and their standard
    deviation 1. It has a gradient in what it is given: latents for a model on latents, else images.
    """
    if (options.penalty or options.value == "std") and _members(folder) < 2:
        raise RewardError(f"the reward {name} asks for the spread of an ensemble, but {folder} has one member")
    model, digest = load_reward_model(folder), _digest(folder)
    if options.guidance not in (None, 1.0, model.guidance) and not _dropped(folder):
        raise RewardError(
            f"the reward {name} has a guidance, but {folder} was trained without text dropout: train it with "
            "--text-dropout 0.1"
        )
    answers = _answers(model, options)
    found = FunctionReward(
        answers, name, differentiable=True, settings={"reward_model": digest, "options": vars(options)},
        identity=lambda: f"reward model {digest[:12]}",
    )  # fmt: skip
    if model.backbone.space == "image":
        return found
    of_images = _of_images(model, answers)
    if options.space == "image":
        return replace(found, function=of_images, differentiable=False)
    return replace(
        found, space="latent", of_images=of_images, latent_shape=model.backbone.shape,
        require_latents=_requires(model, name),
    )  # fmt: skip


def load_reward_model(folder: Path) -> RewardModel:
    """The model of a folder on the accelerator where there is one; loaded once for the same files.

    Raises RewardError where the folder is damaged or the base model another, ModelError where that does not load.
    """
    folder = folder.expanduser().resolve()
    if not is_reward_model(folder):
        raise RewardError(f"{folder} is no reward model: it has no {DESCRIPTION} (`tastemaker reward train` makes one)")
    return _load(folder, _digest(folder))


@lru_cache(maxsize=4)
def _load(folder: Path, digest: str) -> RewardModel:
    description, states = read(folder)
    backbone = load_backbone(description.architecture)
    _check_base(folder, description, backbone.fingerprint())
    heads = tuple(load_head(new_head(description.architecture, backbone, 0), state, folder) for state in states)
    return RewardModel(description.architecture, backbone, heads, description.scale, description.guidance)


def _check_base(folder: Path, description: Description, found: dict[str, str]) -> None:
    if found != description.fingerprint:
        differing = [part for part in description.fingerprint if found.get(part) != description.fingerprint[part]]
        raise RewardError(
            f"the reward model {folder} was trained on another {description.architecture.base} than is there now (its "
            f"{' and '.join(differing) or 'parts'} differ): restore that model, or train the reward model again"
        )


def _digest(folder: Path) -> str:
    try:
        return hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest()
    except OSError as error:
        raise RewardError(f"{folder / DESCRIPTION} cannot be read: {error.strerror or error}") from error


def _members(folder: Path) -> int:
    return len(read(folder)[0].scale.members)


def _dropped(folder: Path) -> bool:
    return read(folder)[0].text_dropout > 0


def _answers(model: RewardModel, options: Options) -> RewardFunction:
    def preference(x: Tensor, prompts: Sequence[str]) -> Tensor:
        shape = model.backbone.shape
        if shape is not None and tuple(x.shape[1:]) != shape:
            raise RewardError(
                f"the reward model reads latents of shape {list(shape)}, but was given {list(x.shape[1:])}: it was "
                "trained at another resolution or on another model's latents"
            )
        members = model.members(x, prompts, options.guidance)
        if options.value == "std":
            return spread(members)
        return members.mean(dim=0) - options.penalty * spread(members) if options.penalty else members.mean(dim=0)

    return preference


def _of_images(model: RewardModel, answers: RewardFunction) -> RewardFunction:
    @torch.no_grad()
    def preference(x: Tensor, prompts: Sequence[str]) -> Tensor:
        return answers(model.backbone.read(x), prompts)

    return preference


def _requires(model: RewardModel, name: str) -> Callable[[Model], None]:
    return lambda other: require_latents(model, name, other)


def require_latents(model: RewardModel, name: str, other: Model) -> None:
    """Raises RewardError where `other` has not the latents that the reward model `name` reads."""
    backbone = model.backbone
    assert isinstance(backbone, DiffusionBackbone)
    if tuple(other.latent_shape) != backbone.shape:
        sides = [shape[-1] * scale for shape, scale in
                 ((backbone.shape, backbone.model.scale), (other.latent_shape, other.scale))]  # fmt: skip
        raise RewardError(
            f"the reward model {name} reads latents of shape {list(backbone.shape)} (images of {sides[0]} pixels), "
            f"but this model makes {list(other.latent_shape)} ({sides[1]} pixels): train a reward model on this "
            "model, or give its images to the reward by space=image"
        )
    if not on_meta(other) and latents_digest(other) != latents_digest(backbone.model):
        raise RewardError(
            f"the reward model {name} was trained on the latents of {model.architecture.model}, and the model "
            f"here has others: train a reward model on it, or give it images by `{name.partition(':')[0]}"
            ":space=image`"
        )


def on_meta(model: Model) -> bool:
    """Whether the model has no weights, as in a dry run."""
    return any(value.is_meta for part in model.components.values() for value in part.parameters())
