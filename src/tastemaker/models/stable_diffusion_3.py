"""Stable Diffusion 3 and 3.5: a transformer over image and text, with two CLIP encoders and, where it is there, T5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tastemaker.models.config_checks import require_flow_parts, sample_size
from tastemaker.models.flow_process import FlowProcess
from tastemaker.models.flow_transformer import FlowFamily
from tastemaker.models.vae import LatentImages
from tastemaker.models.zero_tokens import install, takes_repeats

_T5_TOKENS = 256
"""Of a prompt that T5 reads, as in diffusers' pipeline."""


def _encode(pipeline: Any, prompts: list[str]) -> Mapping[str, Tensor]:
    """`text` [P,L,C]: CLIP's states, then T5's, which are zeros without T5; `pooled` [P,C] of both CLIPs.

    Without T5 there is one token of zeros in place of as many as T5 reads, and `zeros` [P,1] says how many.
    """
    one = pipeline.text_encoder_3 is None and takes_repeats(pipeline.transformer)
    text, _, pooled, _ = pipeline.encode_prompt(
        prompts, prompts, prompts, device=pipeline.text_encoder.device, do_classifier_free_guidance=False,
        max_sequence_length=1 if one else _T5_TOKENS,
    )  # fmt: skip
    states = {"text": text, "pooled": pooled}
    return states | {"zeros": torch.full((len(prompts), 1), _T5_TOKENS, device=text.device)} if one else states


def _predict(
    network: nn.Module, x: Tensor, t: Tensor, states: Mapping[str, Tensor], embedded_guidance: float | None
) -> Tensor:
    repeated = {"joint_attention_kwargs": {"repeats": _T5_TOKENS}} if "zeros" in states else {}
    return network(
        hidden_states=x, timestep=t, encoder_hidden_states=states["text"], pooled_projections=states["pooled"],
        return_dict=False, **repeated,
    )[0]  # fmt: skip


def _tokens(pipeline: Any) -> tuple[Any, int]:
    if pipeline.tokenizer_3 is not None:
        return pipeline.tokenizer_3, _T5_TOKENS
    return pipeline.tokenizer, pipeline.tokenizer.model_max_length


def check(pipeline: Any) -> None:
    """Raises ModelError where the numbers in the configs do not fit."""
    network = pipeline.transformer.config
    sample_size(network, "transformer")
    require_flow_parts(pipeline, network["in_channels"])


SD3 = FlowFamily(
    name="StableDiffusion3Pipeline",
    encode=_encode,
    predict=_predict,
    process=lambda pipeline: FlowProcess(pipeline.scheduler, pipeline.transformer.config["patch_size"], sigmas=None),
    images=lambda pipeline: LatentImages(pipeline.vae),
    shape=lambda pipeline: (
        pipeline.transformer.config["in_channels"], *sample_size(pipeline.transformer.config, "transformer")
    ),
    encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
    tokens=_tokens,
    prepare=lambda pipeline: install(pipeline.transformer) if pipeline.text_encoder_3 is None else None,
    largest=lambda pipeline: (
        pipeline.transformer.config["pos_embed_max_size"] * pipeline.transformer.config["patch_size"]
    ),
)  # fmt: skip
