"""FLUX.1: packed latents, T5's states, CLIP's pooled one, and a guidance weight as an input of the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tastemaker.errors import ModelError
from tastemaker.models.config_checks import require_flow_parts
from tastemaker.models.flow_process import FlowProcess
from tastemaker.models.flow_transformer import FlowFamily
from tastemaker.models.vae import LatentImages

_T5_TOKENS = 512
"""Of a prompt that T5 reads, as in diffusers' pipeline."""
EMBEDDED_GUIDANCE = 3.5
"""Of FLUX.1-dev, as in diffusers' pipeline."""


def _encode(pipeline: Any, prompts: list[str]) -> Mapping[str, Tensor]:
    """`text` [P,L,C] of T5 and `pooled` [P,C] of CLIP."""
    text, pooled, _ = pipeline.encode_prompt(
        prompts, prompts, device=pipeline.text_encoder.device, max_sequence_length=_T5_TOKENS
    )
    return {"text": text, "pooled": pooled}


def packed(x: Tensor) -> Tensor:
    """Latents [N,C,H,W] as tokens [N,(H/2)(W/2),4C] of 2 x 2 elements, with the channel first in each."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, (h // 2) * (w // 2), 4 * c)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `packed`, for latents of this height and width."""
    n, _, channels = tokens.shape
    split = tokens.reshape(n, height // 2, width // 2, channels // 4, 2, 2)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(n, channels // 4, height, width)


def positions(height: int, width: int, device: torch.device) -> Tensor:
    """[height * width,3] of image tokens: 0, the row, and the column."""
    return torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width)).to(device, torch.float32)


def _predict(
    network: nn.Module, x: Tensor, t: Tensor, states: Mapping[str, Tensor], embedded_guidance: float | None
) -> Tensor:
    height, width = x.shape[-2:]
    text = states["text"]
    made = network(
        hidden_states=packed(x), timestep=t / 1000, pooled_projections=states["pooled"], encoder_hidden_states=text,
        guidance=None if embedded_guidance is None else torch.full_like(t, embedded_guidance),
        txt_ids=torch.zeros(text.shape[1], 3, device=x.device),
        img_ids=positions(height // 2, width // 2, x.device), return_dict=False,
    )[0]  # fmt: skip
    return unpacked(made, height, width)


def _shape(pipeline: Any) -> tuple[int, int, int]:
    side = pipeline.default_sample_size
    return pipeline.transformer.config["in_channels"] // 4, side, side


def check(pipeline: Any) -> None:
    """Raises ModelError where the numbers in the configs do not fit, and for few-step models (FLUX.1-schnell)."""
    network = pipeline.transformer.config
    if not network["guidance_embeds"] and not pipeline.scheduler.config["use_dynamic_shifting"]:
        raise ModelError(
            "it is distilled to a few steps, as FLUX.1-schnell (guidance_embeds and use_dynamic_shifting are false), "
            "and training by these methods undoes that: give FLUX.1-dev"
        )
    require_flow_parts(pipeline, network["in_channels"] // 4)


FLUX = FlowFamily(
    name="FluxPipeline",
    encode=_encode,
    predict=_predict,
    process=lambda pipeline: FlowProcess(pipeline.scheduler, patch=2),
    images=lambda pipeline: LatentImages(pipeline.vae),
    shape=_shape,
    encoders=("text_encoder", "text_encoder_2"),
    tokens=lambda pipeline: (pipeline.tokenizer_2, _T5_TOKENS),
    blocks=("transformer_blocks", "single_transformer_blocks"),
    embedded_guidance=lambda pipeline: EMBEDDED_GUIDANCE if pipeline.transformer.config["guidance_embeds"] else None,
)
