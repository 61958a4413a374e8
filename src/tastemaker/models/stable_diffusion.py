"""Stable Diffusion 1.x and 2.x, and everything else that diffusers loads as a StableDiffusionPipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tastemaker.models.config_checks import require_latent, resized, sample_size
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


class LatentUNet:
    """A StableDiffusionPipeline as a `diffusion.model.Model`."""

    def __init__(
        self,
        pipeline: Any,
        precision: str = "fp32",
        device: torch.device | str = "cpu",
        network_device: torch.device | str | None = None,
    ) -> None:
        require_latent(pipeline)
        self.pipeline = pipeline
        self.device = torch.device(device)
        self.dtype = DTYPES[precision]
        self.images = LatentImages(pipeline.vae)
        self.images.place(self.device)
        place(pipeline.text_encoder, self.device, self.dtype)
        with quiet():
            pipeline.unet.requires_grad_(False).eval().to(network_device or self.device, self.dtype)
        self.network: nn.Module = pipeline.unet
        self.process = SchedulerProcess(ddim_scheduler(pipeline.scheduler, latents=True))
        self.latent_shape = (pipeline.unet.config.in_channels, *sample_size(pipeline.unet.config))
        self.weights = NetworkWeights(pipeline.unet)
        self._text, self._pooled = PromptStates(self._encode), PromptStates(self._pool)
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
        return {"text": self._text, "pooled": self._pooled}

    @property
    def components(self) -> dict[str, nn.Module]:
        """The networks beside the U-Net."""
        return {"text_encoder": self.pipeline.text_encoder, "vae": self.pipeline.vae}

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
        """Text states `text` [P,L,C] of the prompts, computed once for each different prompt.

        With `pooled` also `pooled` [P,C], the text encoder's last state at the end of each prompt (CLIP).
        """
        states = [self._text, self._pooled] if pooled else [self._text]
        return conditioned(states, prompts, guidance, self.device, self.negative_prompt)

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """`text` [P,L,C]"""
        with quiet():
            states, _ = self.pipeline.encode_prompt(prompts, self.device, 1, do_classifier_free_guidance=False)
        self._long.look_at(self.pipeline.tokenizer, prompts, self.pipeline.tokenizer.model_max_length)
        return {"text": states}

    def _pool(self, prompts: list[str]) -> dict[str, Tensor]:
        """`pooled` [P,C]"""
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt",
                           max_length=tokenizer.model_max_length)  # fmt: skip
        # As diffusers' encode_prompt asks the encoder for the states themselves.
        masked = getattr(encoder.config, "use_attention_mask", None)
        mask = tokens.attention_mask.to(self.device) if masked else None
        return {"pooled": encoder(tokens.input_ids.to(self.device), attention_mask=mask).pooler_output}

    def clear_prompt_cache(self) -> None:
        """Drops the text states that are kept."""
        self._text.clear()
        self._pooled.clear()

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Guided estimate of x_0 [N,*D] in float64, from one pass over both halves of the guidance."""
        return guided_x0(self.predict, self.process, x, t, cond)

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's own output [N,*D] for the rows' prompts, without guidance."""
        with computing_in(self.dtype, self.device):
            return self.network(x, t, encoder_hidden_states=cond["text"], return_dict=False)[0].to(x.dtype)

    def decode(self, x0: Tensor) -> Tensor:
        """Images [N,3,H,W] in [0,1]."""
        return self.images.decode(x0)

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents [N,*D] of images [N,3,H,W] in [0,1]: the means of the VAE's posterior."""
        return self.images.encode(images)

    def usage(self, base: str) -> str:
        """Python that loads, with diffusers alone, what `save` wrote into the folder `adapter` or `model`."""
        return usage(self.pipeline, self.pipeline.unet, "unet", base, full=self.weights.full)
