"""Pipelines of a U-Net on a VAE's latents: what Stable Diffusion and SDXL share, and what a family says of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tastemaker.models.config_checks import resized, sample_size
from tastemaker.models.guidance import guided_x0
from tastemaker.models.library_logging import quiet
from tastemaker.models.network_weights import NetworkWeights
from tastemaker.models.precision import DTYPES, computing_in
from tastemaker.models.prompt_length import LongPrompts
from tastemaker.models.prompt_states import PromptStates, conditioned
from tastemaker.models.schedulers import SchedulerProcess, ddim_scheduler
from tastemaker.models.text_encoders import place
from tastemaker.models.tuning import Tuning
from tastemaker.models.usage import usage
from tastemaker.models.vae import LatentImages
from tastemaker.types import Cond

Encode = Callable[[Any, list[str], torch.device], Mapping[str, Tensor]]
"""Of a pipeline, prompts and a device: states [P,...] of the prompts by name."""


@dataclass(frozen=True)
class UNetFamily:
    """What is a family's own. `pipeline` is a loaded one of its diffusers class."""

    check: Callable[[Any], None]
    """Raises ModelError where a pipeline is none that can be trained here."""
    encoders: tuple[str, ...]
    """Names of the text encoders."""
    text: Encode
    """The states that the network takes, among them `text` [P,L,C]."""
    predict: Callable[[nn.Module, Tensor, Tensor, Cond], Tensor]
    """Of the network, latents [N,*D], training times [N] and the rows' conditioning: its own output [N,*D]."""
    pooled: Encode | None = None
    """`pooled` [P,C], which is only computed where it is asked for; None where it is among the states of `text`."""
    size: Callable[[int, int], Sequence[float]] | None = None
    """Of an image's height and width in pixels: what the network is told of them, the state `size` of all prompts; None
    where it is told nothing."""
    own_offset: bool = False
    """Whether the scheduler's own `steps_offset` is used, as the family's pipeline in diffusers does, or 1."""


class LatentUNet:
    """A pipeline of a U-Net on a VAE's latents as a `diffusion.model.Model`."""

    def __init__(
        self,
        family: UNetFamily,
        pipeline: Any,
        precision: str = "fp32",
        device: torch.device | str = "cpu",
        network_device: torch.device | str | None = None,
    ) -> None:
        family.check(pipeline)
        self.family, self.pipeline = family, pipeline
        self.device = torch.device(device)
        self.dtype = DTYPES[precision]
        self.images = LatentImages(pipeline.vae)
        self.images.place(self.device)
        for name in family.encoders:
            place(getattr(pipeline, name), self.device, self.dtype)
        with quiet():
            pipeline.unet.requires_grad_(False).eval().to(network_device or self.device, self.dtype)
        self.network: nn.Module = pipeline.unet
        scheduler = ddim_scheduler(pipeline.scheduler, latents=True, own_offset=family.own_offset)
        self.process = SchedulerProcess(scheduler)
        self.latent_shape = (pipeline.unet.config.in_channels, *sample_size(pipeline.unet.config))
        self.weights = NetworkWeights(pipeline.unet)
        self._text = PromptStates(self._encode)
        self._pooled = None if family.pooled is None else PromptStates(self._pool)
        self._long = LongPrompts()
        self.negative_prompt = ""
        self.embedded_guidance: float | None = None

    @property
    def scale(self) -> int:
        """Pixels to a side of one latent element."""
        return self.images.scale

    @property
    def multiple(self) -> int:
        """Of which an image's height and width in pixels must be multiples."""
        return self.scale * 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)

    @property
    def prompt_states(self) -> dict[str, PromptStates]:
        """What it keeps of prompts."""
        return {"text": self._text} | ({} if self._pooled is None else {"pooled": self._pooled})

    @property
    def components(self) -> dict[str, nn.Module]:
        """The networks beside the U-Net."""
        return {name: getattr(self.pipeline, name) for name in (*self.family.encoders, "vae")}

    def resize(self, height: int | None, width: int | None) -> None:
        """Makes images of height x width pixels from now on; None keeps what it is.

        Raises ModelError where the latents would not fit.
        """
        self.latent_shape = resized(self.latent_shape, self.scale, height, width, self.multiple)

    def tune(self, tuning: Tuning, seed: int = 0) -> None:
        """Makes the U-Net trainable, by adapters (drawn from `seed`) or in full."""
        self.weights.tune(tuning, seed)
        if tuning.gradient_checkpointing:  # of use where a reward's gradient comes through the decoder
            self.pipeline.vae.enable_gradient_checkpointing()

    def check(self, prompts: Sequence[str]) -> None:
        """Any text will do."""

    def encode(self, prompts: Sequence[str], guidance: float, *, pooled: bool = False) -> Cond:
        """The family's states of the prompts, computed once for each different prompt.

        With `pooled` also `pooled` [P,C], the text encoder's last state at the end of each prompt (CLIP), where it is
        not always among them.
        """
        states = [self._text] if self._pooled is None or not pooled else [self._text, self._pooled]
        cond = conditioned(states, prompts, guidance, self.device, self.negative_prompt)
        if self.family.size is None:
            return cond
        height, width = (side * self.scale for side in self.latent_shape[-2:])
        size = torch.tensor(self.family.size(height, width), dtype=torch.float32, device=self.device)
        return replace(cond, states={**cond.states, "size": size.expand(len(cond.states["text"]), -1)})

    def _encode(self, prompts: list[str]) -> Mapping[str, Tensor]:
        with quiet():
            states = self.family.text(self.pipeline, prompts, self.device)
        self._long.look_at(self.pipeline.tokenizer, prompts, self.pipeline.tokenizer.model_max_length)
        return states

    def _pool(self, prompts: list[str]) -> Mapping[str, Tensor]:
        assert self.family.pooled is not None
        return self.family.pooled(self.pipeline, prompts, self.device)

    def clear_prompt_cache(self) -> None:
        """Drops the states that are kept."""
        for states in self.prompt_states.values():
            states.clear()

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Guided estimate of x_0 [N,*D] in float64, from one pass over both halves of the guidance."""
        return guided_x0(self.predict, self.process, x, t, cond)

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's own output [N,*D] for the rows' prompts, without guidance."""
        with computing_in(self.dtype, self.device):
            return self.family.predict(self.network, x, t, cond).to(x.dtype)

    def decode(self, x0: Tensor) -> Tensor:
        """Images [N,3,H,W] in [0,1]."""
        return self.images.decode(x0)

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents [N,*D] of images [N,3,H,W] in [0,1]: the means of the VAE's posterior."""
        return self.images.encode(images)

    def usage(self, base: str) -> str:
        """Python that loads, with diffusers alone, what `save` wrote into the folder `adapter` or `model`."""
        return usage(self.pipeline, self.pipeline.unet, "unet", base, full=self.weights.full)
