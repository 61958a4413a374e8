"""Stable Diffusion 1.x and 2.x, and everything else that diffusers loads as a StableDiffusionPipeline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tastemaker.models.config_checks import require_latent
from tastemaker.models.latent_unet import UNetFamily
from tastemaker.types import Cond


def _encode(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    """`text` [P,L,C]"""
    states, _ = pipeline.encode_prompt(prompts, device, 1, do_classifier_free_guidance=False)
    return {"text": states}


def _pool(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    """`pooled` [P,C]"""
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt",
                       max_length=tokenizer.model_max_length)  # fmt: skip
    # As diffusers' encode_prompt asks the encoder for the states themselves.
    masked = getattr(encoder.config, "use_attention_mask", None)
    mask = tokens.attention_mask.to(device) if masked else None
    return {"pooled": encoder(tokens.input_ids.to(device), attention_mask=mask).pooler_output}


def _predict(network: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    return network(x, t, encoder_hidden_states=cond["text"], return_dict=False)[0]


SD = UNetFamily(require_latent, ("text_encoder",), _encode, _predict, pooled=_pool)
