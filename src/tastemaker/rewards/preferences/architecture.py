"""What a reward model is made of, as its reward_model.json says it. Free of torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from tastemaker.constraints import check_constraints
from tastemaker.errors import ConfigError

Kind = Literal["unet", "transformer", "clip", "head"]
KINDS: tuple[Kind, ...] = ("unet", "transformer", "clip", "head")


@dataclass(frozen=True)
class Architecture:
    """The network of a reward model: frozen features, and the part that is trained on top of them."""

    kind: Kind = "unet"
    """`unet`: the encoder and bottleneck of a diffusion model's U-Net, frozen, and an attention pool over image and
    text. `transformer`: the same on the first blocks of a diffusion model's transformer. `clip`: a CLIP with
    PickScore's objective. `head`: a linear layer or MLP on frozen features, for few labels."""
    model: str = "bundled"
    """unet and transformer, and head with their features: the diffusion model whose latents and network are used."""
    clip: str = "bundled"
    """clip, and head with features = clip: `bundled`, a transformers CLIP (a folder or a hub name), or a file with
    open_clip's names."""
    features: Literal["clip", "unet", "transformer"] = "clip"
    """head: whose features."""
    size: Annotated[int, Gt(0)] | None = None
    """Pixels to a side of the images that a model on latents reads; none: those that the diffusion model makes."""
    timesteps: tuple[int, ...] = (0,)
    """Models on latents: the training times at which the network is asked. An image is scored at the first. At time 0 a
    latent is given as it is, at others with the noise of that time. Of several, each update in training has one at
    random (LRM, Zhang et al. 2025)."""
    blocks: Annotated[int, Gt(0)] | None = None
    """transformer, and head with its features: how many of its blocks are used; none: the first half of them."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """transformer, and head with its features: of the frozen weights. bf16 takes half of the memory."""
    heads: Annotated[int, Gt(0)] = 4
    """unet and transformer: heads of the attention pool."""
    layers: Annotated[int, Ge(0)] = 0
    """clip: last layers of the image tower that are trained beside the two projections and the temperature."""
    logit_scale: Annotated[float, Gt(0)] | None = 10.0
    """clip: what the cosine is multiplied by before training, which then learns it; none: the CLIP's own, as PickScore
    has it. That belongs to telling captions apart, and its large differences take many labels to unlearn."""
    hidden: Annotated[int, Ge(0)] = 0
    """head: width of the MLP's hidden layer; 0 is a linear layer."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """head: dropout of its input, and of its hidden layer."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"a reward model of kind {self.kind!r} is not known; known: {', '.join(KINDS)}")
        check_constraints(self)
        object.__setattr__(self, "timesteps", tuple(self.timesteps))
        if not self.timesteps or min(self.timesteps) < 0:
            raise ConfigError(f"timesteps are {list(self.timesteps)}, but must be one or several numbers from 0")
        if len(set(self.timesteps)) != len(self.timesteps):
            raise ConfigError(f"timesteps are {list(self.timesteps)}: name each once")
        for name, (needed, used) in self._uses().items():
            if not used and getattr(self, name) != getattr(type(self), name):
                raise ConfigError(f"{name} is a setting of {needed}, and this reward model is of kind {self.described}")

    @property
    def network(self) -> Literal["unet", "transformer"] | None:
        """The network of the diffusion model that it is made of, and whose latents it reads; None for a CLIP."""
        source = self.features if self.kind == "head" else self.kind
        return source if source in ("unet", "transformer") else None

    @property
    def base(self) -> str:
        """The name of the model whose features it has."""
        return self.clip if self.network is None else self.model

    @property
    def pools(self) -> bool:
        """Whether what is trained is an attention pool over image and text."""
        return self.kind in ("unet", "transformer")

    @property
    def described(self) -> str:
        """The kind, and for a head whose features it has."""
        return f"head on {self.features} features" if self.kind == "head" else self.kind

    def _uses(self) -> dict[str, tuple[str, bool]]:
        """Settings that not every kind has: whose they are, and whether this one's."""
        head, pool = ("kind head", self.kind == "head"), ("kinds unet and transformer", self.pools)
        clip = ("kind clip", self.kind == "clip")
        latent = ("reward models on latents", self.network is not None)
        transformer = ("reward models with a transformer", self.network == "transformer")
        return {
            "model": latent, "size": latent, "timesteps": latent, "blocks": transformer, "precision": transformer,
            "heads": pool, "features": head, "hidden": head, "dropout": head, "layers": clip, "logit_scale": clip,
            "clip": ("reward models with a CLIP", self.network is None),
        }  # fmt: skip


def to_json(architecture: Architecture) -> dict[str, Any]:
    """The architecture as JSON takes it."""
    return dataclasses.asdict(architecture) | {"timesteps": list(architecture.timesteps)}


def from_json(content: Mapping[str, Any]) -> Architecture:
    """The architecture out of `to_json`. Raises ConfigError for what is none."""
    try:
        return Architecture(**content)
    except TypeError as error:
        raise ConfigError(f"the architecture of the reward model cannot be read: {error}") from error
