"""Z-Image: one stream of image and text tokens, with the states of a Qwen3 language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tastemaker.models.chat_states import TOKENS, chat_states, pooled
from tastemaker.models.config_checks import require_flow_parts
from tastemaker.models.flow_process import FlowProcess
from tastemaker.models.flow_transformer import FlowFamily
from tastemaker.models.vae import LatentImages

_PIXELS = 1024
"""To a side of an image where no size is given, as in diffusers' pipeline."""


def _encode(pipeline: Any, prompts: list[str]) -> Mapping[str, Tensor]:
    """`text` [P,L,C] before the last layer, 0 behind a prompt's own tokens; their `mask` [P,L]; `pooled` [P,C]."""
    (text,), mask = chat_states(pipeline, prompts, [-2], thinking=True)
    text = text * mask.to(text).unsqueeze(2)
    return {"text": text, "mask": mask, "pooled": pooled(text, mask)}


def _predict(
    network: nn.Module, x: Tensor, t: Tensor, states: Mapping[str, Tensor], embedded_guidance: float | None
) -> Tensor:
    text, mask = states["text"], states["mask"]
    # On the meta device, where shapes are counted, texts are as long as they may be.
    lengths = [text.shape[1]] * len(text) if text.is_meta else mask.sum(dim=1).long().tolist()
    made = network(
        list(x.unsqueeze(2).unbind()), (1000 - t) / 1000,
        [row[:length] for row, length in zip(text, lengths, strict=True)], return_dict=False,
    )[0]  # fmt: skip
    return -torch.stack(list(made)).squeeze(2)


def _shape(pipeline: Any) -> tuple[int, int, int]:
    side = _PIXELS // LatentImages(pipeline.vae).scale
    return pipeline.transformer.config["in_channels"], side, side


def check(pipeline: Any) -> None:
    """Raises ModelError where the numbers in the configs do not fit."""
    require_flow_parts(pipeline, pipeline.transformer.config["in_channels"])


Z_IMAGE = FlowFamily(
    name="ZImagePipeline",
    encode=_encode,
    predict=_predict,
    process=lambda pipeline: FlowProcess(pipeline.scheduler, patch=2),
    images=lambda pipeline: LatentImages(pipeline.vae),
    shape=_shape,
    encoders=("text_encoder",),
    tokens=lambda pipeline: (pipeline.tokenizer, TOKENS),
    blocks=("layers",),
    image_tokens=lambda answer, count: answer[:, :count],
)
