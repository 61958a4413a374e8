"""SDXL (Podell et al. 2023), and everything else that diffusers loads as a StableDiffusionXLPipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tastemaker.models.config_checks import require_xl, resized, sample_size
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


class LatentXL:
    """A StableDiffusionXLPipeline as a `diffusion.model.Model`.

    The empty prompt, the unconditional half of guidance, has states of zeros where the pipeline says
    `force_zeros_for_empty_prompt`, as SDXL does, and is encoded otherwise. The VAE, which overflows in float16
    (`force_upcast`), stays in float32.
    """

    def __init__(
        self,
        pipeline: Any,
        precision: str = "fp32",
        device: torch.device | str = "cpu",
        network_device: torch.device | str | None = None,
    ) -> None:
        require_xl(pipeline)
        self.pipeline = pipeline
        self.device = torch.device(device)
        self.dtype = DTYPES[precision]
        self.images = LatentImages(pipeline.vae)
        self.images.place(self.device)
        for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
            place(encoder, self.device, self.dtype)
        with quiet():
            pipeline.unet.requires_grad_(False).eval().to(network_device or self.device, self.dtype)
        self.network: nn.Module = pipeline.unet
        self.process = SchedulerProcess(ddim_scheduler(pipeline.scheduler, latents=True, own_offset=True))
        self.latent_shape = (pipeline.unet.config.in_channels, *sample_size(pipeline.unet.config))
        self.weights = NetworkWeights(pipeline.unet)
        self.negative_prompt = ""
        self.embedded_guidance: float | None = None
        self._states = PromptStates(self._encode)
        self._long = LongPrompts()

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
        """The states of both text encoders."""
        return {"text": self._states}

    @property
    def components(self) -> dict[str, nn.Module]:
        """The networks beside the U-Net."""
        pipeline = self.pipeline
        return {"text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2, "vae": pipeline.vae}

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
        """States of the prompts: `text` [P,L,C] of both encoders, `pooled` [P,C'] of the second, and `size` [P,6].

        `size` is what SDXL is told of an image: its height and width before it was cropped, the crop's top and left,
        and height and width after it; here the size of the images that are made, uncropped, as in diffusers. The
        network takes all of them, so that `pooled` is always there.
        """
        height, width = (side * self.scale for side in self.latent_shape[-2:])
        cond = conditioned([self._states], prompts, guidance, self.device, self.negative_prompt)
        size = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=self.device)
        return replace(cond, states={**cond.states, "size": size.expand(len(cond.states["text"]), -1)})

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """`text` [P,L,C] and `pooled` [P,C']"""
        pipeline = self.pipeline
        with quiet():
            text, _, pooled, _ = pipeline.encode_prompt(
                prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        self._long.look_at(pipeline.tokenizer, prompts, pipeline.tokenizer.model_max_length)
        if pipeline.config.force_zeros_for_empty_prompt:
            given = torch.tensor([bool(prompt) for prompt in prompts], device=text.device)
            text, pooled = text * given[:, None, None], pooled * given[:, None]
        return {"text": text, "pooled": pooled}

    def clear_prompt_cache(self) -> None:
        """Drops the states that are kept."""
        self._states.clear()

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Guided estimate of x_0 [N,*D] in float64, from one pass over both halves of the guidance."""
        return guided_x0(self.predict, self.process, x, t, cond)

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's own output [N,*D] for the rows' prompts, without guidance."""
        added = {"text_embeds": cond["pooled"], "time_ids": cond["size"]}
        with computing_in(self.dtype, self.device):
            return self.network(
                x, t, encoder_hidden_states=cond["text"], added_cond_kwargs=added, return_dict=False
            )[0].to(x.dtype)  # fmt: skip

    def decode(self, x0: Tensor) -> Tensor:
        """Images [N,3,H,W] in [0,1]."""
        return self.images.decode(x0)

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents [N,*D] of images [N,3,H,W] in [0,1]: the means of the VAE's posterior."""
        return self.images.encode(images)

    def usage(self, base: str) -> str:
        """Python that loads, with diffusers alone, what `save` wrote into the folder `adapter` or `model`."""
        return usage(self.pipeline, self.pipeline.unet, "unet", base, full=self.weights.full)
