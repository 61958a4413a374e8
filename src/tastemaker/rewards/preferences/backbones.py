"""The frozen part of a reward model: features of images with their prompts, and of the prompts alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tastemaker.diffusion.model import Model
from tastemaker.errors import RewardError
from tastemaker.models import load_model
from tastemaker.models.transformer_blocks import TransformerEncoder
from tastemaker.models.unet_encoder import UNetEncoder, times
from tastemaker.models.weights_digest import weights_digest
from tastemaker.rewards.base import Space
from tastemaker.rewards.learned.clip_model import Clip, load_clip
from tastemaker.rewards.preferences.architecture import Architecture
from tastemaker.types import Cond

_NOISE_SEED = 0
"""Of the noise that a latent is given where a reward model scores at a training time above 0."""

_DIGESTS: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Of VAEs, which never learn: a round asks again and again."""


class Backbone(Protocol):
    """What turns inputs [N,...], images or latents, into features. It does not learn, and its gradients flow."""

    @property
    def space(self) -> Space:
        """Whether its inputs are images or latents."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its features are."""
        ...

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of one input; None for images of any size."""
        ...

    @property
    def pixels(self) -> int | None:
        """Pixels to a side of the images that `read` takes; None for any."""
        ...

    @property
    def times(self) -> tuple[int, ...]:
        """Training times at which features can be asked for."""
        ...

    def read(self, images: Tensor) -> Tensor:
        """Inputs [N,...] of images [N,3,H,W] in [0,1], with their graph. Raises RewardError for another size."""
        ...

    def images(self, x: Tensor, prompts: Sequence[str], t: int, noise: Tensor | None = None) -> Tensor:
        """Features [N,...] of inputs with their prompts at training time t, float32 on `device`.

        `noise` [N,*D] is used at times above 0; without it all have the same, so that features do not change.
        """
        ...

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Features [N,...] of prompts, without gradient."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of the weights by part; `latents` is of those that make latents."""
        ...


class MapEncoder(Protocol):
    """The first part of a diffusion model's network."""

    @property
    def part(self) -> str:
        """What the network is called: `unet` or `transformer`."""
        ...

    @property
    def channels(self) -> int:
        """C of its maps."""
        ...

    @property
    def side(self) -> int:
        """h and w of its maps."""
        ...

    def maps(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """[N,C,h,w] of latents x [N,*D] at training times t [N] with the rows' prompts."""
        ...


class DiffusionBackbone:
    """The first part of a diffusion model's own network, and its text encoder.

    Features are maps, or where `pooled` vectors: their means and standard deviations, for a small head. The text has
    its part in them by the network's attention.
    """

    space: Space = "latent"

    def __init__(
        self, model: Model, source: str, encoder: MapEncoder, times: tuple[int, ...], pooled: bool = False
    ) -> None:
        _require_times(model, source, times)
        self.model, self.encoder, self.times, self.device, self.pooled = model, encoder, times, model.device, pooled
        for part in (model.network, *model.components.values()):
            part.requires_grad_(False).eval()
        self.text_channels: int = model.encode([""], 1.0).states["text"].shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """[C,h,w] of a latent."""
        return tuple(self.model.latent_shape)

    @property
    def pixels(self) -> int:
        return self.shape[-1] * self.model.scale

    def read(self, images: Tensor) -> Tensor:
        """Latents [N,*D] of images [N,3,H,W] in [0,1]: the means of the VAE's posterior."""
        side = self.pixels
        if images.shape[-2:] != (side, side):
            raise RewardError(
                f"the reward model reads images of {side} x {side} pixels, but was given "
                f"{images.shape[-1]} x {images.shape[-2]}: scale them, or train a reward model with --size"
            )
        return self.model.encode_images(images.to(self.device, torch.float32))

    def images(self, x: Tensor, prompts: Sequence[str], t: int, noise: Tensor | None = None) -> Tensor:
        """Maps [N,C,h,w], or pooled [N,2C]."""
        x = x.to(self.device, torch.float32)
        at = times(t, x)
        if t:
            alpha, sigma = (scale.to(x).reshape(-1, 1, 1, 1) for scale in self.model.process.scales(at))
            x = alpha * x + sigma * (self._noise() if noise is None else noise.to(x))
        maps = self.encoder.maps(x, at, self.model.encode(prompts, 1.0))
        return mean_and_deviation(maps) if self.pooled else maps

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Text states [N,L,C'], or [N,0] where pooled."""
        if self.pooled:
            return torch.zeros(len(prompts), 0, device=self.device)
        return self.model.encode(prompts, 1.0)["text"].float()

    def fingerprint(self) -> dict[str, str]:
        """Of the network's first part, the text encoder, and what makes latents."""
        network = weights_digest({self.encoder.part: self.model.network})
        found = {self.encoder.part: network, "latents": latents_digest(self.model)}
        parts = {name: part for name, part in self.model.components.items() if name != "vae"}
        return found | ({"text": weights_digest(parts)} if parts else {})

    def _noise(self) -> Tensor:
        """[1,*D] the same for all images."""
        generator = torch.Generator().manual_seed(_NOISE_SEED)
        return torch.randn(1, *self.shape, generator=generator).to(self.device)


class ClipBackbone:
    """A CLIP up to what is trained of it: the last `layers` of its image tower, and its projections.

    Where `projected`, nothing of it is trained, and features are its own: projected, and of length 1.
    """

    space: Space = "image"
    shape = None
    pixels = None
    times = (0,)

    def __init__(self, clip: Clip, layers: int, device: torch.device, projected: bool = False) -> None:
        model: Any = clip.model
        self.clip, self.device, self.projected = clip, device, projected
        self.model, self.vision = model, model.vision_model
        there = len(self.vision.encoder.layers)
        if layers > there:
            raise RewardError(f"layers is {layers}, but the CLIP's image tower has {there}")
        self.frozen, self.trained = self.vision.encoder.layers[: there - layers], layers
        nn.Module.to(model, device)

    def read(self, images: Tensor) -> Tensor:
        """The images themselves: they are scaled and cut as the CLIP needs them."""
        return images

    def images(self, x: Tensor, prompts: Sequence[str], t: int, noise: Tensor | None = None) -> Tensor:
        """The pooled state [N,D]; where layers are trained the states [N,L,D] that the first of them is given; where
        projected the feature [N,D]."""
        hidden = self.vision.pre_layrnorm(self.vision.embeddings(self.clip.preprocess(x.to(self.device).float())))
        for layer in self.frozen:
            hidden = run_layer(layer, hidden)
        if self.trained:
            return hidden
        pooled = self.vision.post_layernorm(hidden[:, 0])
        return F.normalize(self.model.visual_projection(pooled), dim=-1) if self.projected else pooled

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """The pooled state [N,D]; where projected the feature."""
        rows = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
        different = list(rows)
        parts = [different[start : start + 64] for start in range(0, len(different), 64)]
        states = torch.cat([self.clip.pooled_texts(part, self.device) for part in parts])
        if self.projected:
            states = F.normalize(self.model.text_projection(states), dim=-1)
        return states[torch.tensor([rows[prompt] for prompt in prompts], device=self.device)]

    def fingerprint(self) -> dict[str, str]:
        return {"clip": weights_digest({"clip": self.model})}


def check_network(architecture: Architecture, model: Model) -> None:
    """Raises ModelError or RewardError where no reward model can be made of a diffusion model, which needs no weights.

    The model's network is cut, as `map_encoder` does.
    """
    if architecture.network is not None:
        _require_times(model, architecture.model, architecture.timesteps)
        map_encoder(architecture, model)


def map_encoder(architecture: Architecture, model: Model) -> MapEncoder:
    """The first part of the model's network; the rest of it is dropped.

    Raises ModelError where the network is of another kind, and RewardError where the pool's heads do not fit it.
    """
    encoder: MapEncoder = (
        UNetEncoder(model, architecture.model)
        if architecture.network == "unet"
        else TransformerEncoder(model, architecture.model, architecture.blocks)
    )
    if architecture.pools and encoder.channels % architecture.heads:
        raise RewardError(
            f"heads is {architecture.heads}, but must divide the {encoder.channels} channels of the features of "
            f"{architecture.model}"
        )
    return encoder


def _require_times(model: Model, source: str, times: tuple[int, ...]) -> None:
    last = model.process.times[-1]
    if max(times) > last:
        raise RewardError(f"the training time {max(times)} is none of {source}, which has times 0 to {last}")


def load_backbone(architecture: Architecture, device: torch.device | None = None) -> Backbone:
    """The backbone of an architecture, its weights loaded, on the accelerator where there is one.

    Raises ModelError or RewardError where the base model does not load or does not fit.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if architecture.network is not None:
        model = load_model(architecture.model, architecture.precision, device)
        if architecture.size is not None:
            model.resize(architecture.size, architecture.size)
        pooled = architecture.kind == "head"
        encoder = map_encoder(architecture, model)
        return DiffusionBackbone(model, architecture.model, encoder, architecture.timesteps, pooled)
    clip = load_clip(architecture.clip, f"of kind {architecture.kind}")
    return ClipBackbone(clip, architecture.layers, device, projected=architecture.kind == "head")


def mean_and_deviation(maps: Tensor) -> Tensor:
    """[N,2C] means and standard deviations of maps [N,C,h,w]; a gradient is finite also where a map is constant."""
    flat = maps.flatten(2)
    return torch.cat([flat.mean(dim=2), (flat.var(dim=2, correction=0) + 1e-6).sqrt()], dim=1)


def latents_digest(model: Model) -> str:
    """SHA-256 of what turns images into a model's latents: its VAE, or nothing for a model of pixels."""
    vae = model.components.get("vae")
    if vae is None:
        return "pixels"
    if vae not in _DIGESTS:
        _DIGESTS[vae] = weights_digest({"vae": vae})
    return _DIGESTS[vae]


def run_layer(layer: nn.Module, hidden: Tensor) -> Tensor:
    """One layer of a CLIP's tower, whose answer is a tuple in some versions of transformers."""
    answer = layer(hidden, None)
    return answer[0] if isinstance(answer, tuple) else answer
