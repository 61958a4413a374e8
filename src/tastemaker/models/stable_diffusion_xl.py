"""SDXL (Podell et al. 2023), and everything else that diffusers loads as a StableDiffusionXLPipeline.

The empty prompt, the unconditional half of guidance, has states of zeros where the pipeline says
`force_zeros_for_empty_prompt`, as SDXL does, and is encoded otherwise. The VAE, which overflows in float16
(`force_upcast`), stays in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tastemaker.models.config_checks import require_xl
from tastemaker.models.latent_unet import UNetFamily
from tastemaker.types import Cond


def _encode(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    """`text` [P,L,C] of both encoders and `pooled` [P,C'] of the second; the network takes both."""
    text, _, pooled, _ = pipeline.encode_prompt(
        prompts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    if pipeline.config.force_zeros_for_empty_prompt:
        given = torch.tensor([bool(prompt) for prompt in prompts], device=text.device)
        text, pooled = text * given[:, None, None], pooled * given[:, None]
    return {"text": text, "pooled": pooled}


def _size(height: int, width: int) -> tuple[int, ...]:
    """Height and width of an image before it was cropped, the crop's top and left, and height and width after it: here
    the size of the images that are made, uncropped, as in diffusers."""
    return height, width, 0, 0, height, width


def _predict(network: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    added = {"text_embeds": cond["pooled"], "time_ids": cond["size"]}
    return network(x, t, encoder_hidden_states=cond["text"], added_cond_kwargs=added, return_dict=False)[0]


SDXL = UNetFamily(
    require_xl, ("text_encoder", "text_encoder_2"), _encode, _predict, size=_size, own_offset=True
)  # fmt: skip
