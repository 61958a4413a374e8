"""Stable Diffusion 1.x and 2.x, and everything else that diffusers loads as a StableDiffusionPipeline."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tastemaker.errors import ModelError
from tastemaker.models import adapter_files, lora, prompt_length
from tastemaker.models.checks import image_side, require_latent
from tastemaker.models.guidance import guided_x0
from tastemaker.models.library_logging import quiet
from tastemaker.models.schedulers import SchedulerProcess, ddim
from tastemaker.models.tuning import Tuning
from tastemaker.models.weight_copy import WeightCopy
from tastemaker.types import Cond

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class LatentUNet:
    """A StableDiffusionPipeline behind the narrow door of `protocols.Model`."""

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
        pipeline.vae.requires_grad_(False).eval()
        pipeline.text_encoder.requires_grad_(False).eval()
        pipeline.unet.requires_grad_(False).eval()
        with quiet():
            # The VAE stays in float32: it is a small part of the work, and overflows in float16 for SD 2.x.
            pipeline.vae.to(self.device, torch.float32)
            pipeline.text_encoder.to(self.device, self.dtype)
            pipeline.unet.to(network_device or self.device, self.dtype)
        self.network: nn.Module = pipeline.unet
        self.process = SchedulerProcess(ddim(pipeline.scheduler, latents=True))
        side = image_side(pipeline.unet.config)
        self.latent_shape = (pipeline.unet.config.in_channels, side, side)
        self.tuned: Tuning | None = None
        self.held: WeightCopy | None = None
        """The reference's weights, where they are not those without adapters (training/reference.py)."""
        self._text: dict[str, Tensor] = {}
        self._pooled: dict[str, Tensor] = {}
        self._said_long = False

    @property
    def scale(self) -> int:
        """Pixels to a side of one latent element."""
        return 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1)

    def resize(self, pixels: int) -> None:
        """Makes images of pixels x pixels from now on. Raises ModelError where the latents would not fit."""
        multiple = self.scale * 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)
        if pixels <= 0 or pixels % multiple:
            raise ModelError(f"sampling.size is {pixels}, but this model needs a multiple of {multiple}")
        side = pixels // self.scale
        self.latent_shape = (self.latent_shape[0], side, side)

    def tune(self, tuning: Tuning, seed: int = 0) -> None:
        """Makes the U-Net trainable, by adapters (drawn from `seed`) or in full."""
        lora.tune(self.pipeline.unet, tuning, seed)
        if tuning.gradient_checkpointing:  # of use where a reward's gradient comes through the decoder
            self.pipeline.vae.enable_gradient_checkpointing()
        self.tuned = tuning

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name."""
        return {name: p for name, p in self.pipeline.unet.named_parameters() if p.requires_grad}

    def check(self, prompts: Sequence[str]) -> None:
        """Any text will do."""

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], guidance: float) -> Cond:
        """Text states [B,L,C] of the prompts, computed once for each different prompt."""
        missing = [prompt for prompt in dict.fromkeys([*prompts, ""]) if prompt not in self._text]
        for start in range(0, len(missing), 64):
            part = missing[start : start + 64]
            with quiet():
                states, _ = self.pipeline.encode_prompt(part, self.device, 1, do_classifier_free_guidance=False)
                long = prompt_length.longer(self.pipeline.tokenizer, part)
            if long and not self._said_long:
                self._said_long = True
                prompt_length.warn(long, self.pipeline.tokenizer.model_max_length)
            self._text.update(zip(part, states.float(), strict=True))
        text = torch.stack([self._text[prompt] for prompt in prompts])
        return Cond(text, self._text[""].unsqueeze(0), guidance)

    @torch.no_grad()
    def pooled(self, prompts: Sequence[str]) -> Tensor:
        """Pooled text states [B,C]: the text encoder's last state at the end of each prompt (CLIP)."""
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._pooled]
        for start in range(0, len(missing), 64):
            part = missing[start : start + 64]
            tokens = tokenizer(part, padding="max_length", truncation=True, return_tensors="pt",
                               max_length=tokenizer.model_max_length)  # fmt: skip
            # As diffusers' encode_prompt asks the encoder for the states themselves.
            masked = getattr(encoder.config, "use_attention_mask", None)
            mask = tokens.attention_mask.to(self.device) if masked else None
            states = encoder(tokens.input_ids.to(self.device), attention_mask=mask).pooler_output
            self._pooled.update(zip(part, states.float(), strict=True))
        return torch.stack([self._pooled[prompt] for prompt in prompts])

    def clear_prompt_cache(self) -> None:
        """Drops the text states that are kept: hundreds of kB for each prompt, which data sets have by the million."""
        self._text.clear()
        self._pooled.clear()

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Guided estimate of x_0 [N,*D] in float64, from one pass over both halves of the guidance."""
        return guided_x0(self._predict, self.process, x, t, cond)

    def _predict(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        half = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype) if half else nullcontext():
            return self.network(x, t, encoder_hidden_states=text, return_dict=False)[0].to(x.dtype)

    def decode(self, x0: Tensor) -> Tensor:
        """Images [N,3,H,W] in [0,1]."""
        vae = self.pipeline.vae
        return (vae.decode(x0 / vae.config.scaling_factor, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Latents [N,*D] of images [N,3,H,W] in [0,1]: the means of the VAE's posterior."""
        vae = self.pipeline.vae
        return vae.encode(2 * images.to(self.device) - 1).latent_dist.mean * vae.config.scaling_factor

    def reference(self) -> AbstractContextManager[None]:
        """Inside it the model has the weights that were held, or else its adapters off.

        Raises ModelError for a fully tuned model that holds none.
        """
        return self.held.swapped_in() if self.held is not None else lora.reference(self.pipeline.unet, self.tuned)

    def apply(self, folder: Path) -> None:
        """Puts on what `save` wrote: an adapter, or the whole U-Net. Raises a TastemakerError where it does not fit."""
        adapter_files.apply(self.pipeline.unet, folder)

    def save(self, folder: Path) -> None:
        """Writes what was trained: an adapter for `load_lora_weights`, or the U-Net for `from_pretrained`."""
        if self.tuned is not None and self.tuned.mode == "full":
            self.pipeline.unet.save_pretrained(folder / "unet")
        else:
            adapter_files.save(self.pipeline.unet, folder)

    def usage(self, base: str) -> str:
        """Python that loads, with diffusers alone, what `save` wrote into the folder `adapter` or `model`."""
        # transformers keeps the text encoder in the precision of its file, diffusers makes the U-Net float32.
        pipe = f"pipe = StableDiffusionPipeline.from_pretrained({base})\npipe.to(torch.float32)"
        if self.tuned is not None and self.tuned.mode == "full":
            return (
                f"import torch\nfrom diffusers import StableDiffusionPipeline, UNet2DConditionModel\n\n{pipe}\n"
                "pipe.unet = UNet2DConditionModel.from_pretrained('model/unet')\n"
            )
        return (
            f"import torch\nfrom diffusers import StableDiffusionPipeline\n\n{pipe}\n"
            "pipe.load_lora_weights('adapter')\n"
        )
