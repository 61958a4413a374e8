"""Hidden states of a language model that reads a prompt as a user's message (Z-Image, FLUX.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TOKENS = 512
"""That are read of a prompt, the template's included, as in diffusers' pipelines."""


def chat_states(
    pipeline: Any, prompts: Sequence[str], layers: Sequence[int], thinking: bool
) -> tuple[list[Tensor], Tensor]:
    """For each layer the states [P,TOKENS,C] after it, and a mask [P,TOKENS] float32 that is 1 at tokens of the text.

    `layers` are indices into the model's `hidden_states`; `thinking` is the template's `enable_thinking`.
    """
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        for prompt in prompts
    ]
    tokens = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    mask = tokens.attention_mask
    if encoder.device.type == "meta":  # transformers looks at the values of positions and masks
        shape = (len(texts), TOKENS, encoder.config.hidden_size)
        return [torch.empty(shape, device="meta") for _ in layers], mask.to("meta", torch.float32)
    states = encoder(
        input_ids=tokens.input_ids.to(encoder.device), attention_mask=mask.to(encoder.device),
        output_hidden_states=True, use_cache=False,
    ).hidden_states  # fmt: skip
    return [states[layer] for layer in layers], mask.to(encoder.device, torch.float32)


def pooled(text: Tensor, mask: Tensor) -> Tensor:
    """[P,C] means of states [P,L,C] over the tokens of the text, by the mask [P,L]."""
    weight = mask.to(text).unsqueeze(2)
    return (text * weight).sum(dim=1) / weight.sum(dim=1)
