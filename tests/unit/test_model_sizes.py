"""Numbers of parameters of published models, from the numbers in their public configs, on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

SD3: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64,
    "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
}  # fmt: skip
MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (lambda: SD3Transformer2DModel(**SD3, **MEDIUM, pos_embed_max_size=192), 2_028_328_000),
        (lambda: FluxTransformer2DModel(guidance_embeds=True), 11_901_408_320),
    ],
    ids=["Stable Diffusion 3 medium", "FLUX.1-dev"],
)
def test_parameters_of_published_transformers(make, parameters):
    with torch.device("meta"):
        network = make()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_parameters_of_stable_diffusion_3_5_medium():
    """SD 3 medium's and, by hand, the weights that it has besides.

    In 13 of 24 blocks a second attention of the image (four linear layers of 1536 x 1536 with biases) and 3 more
    modulations of the image's norm (as large each); norms of queries and keys, 64 numbers each: 2 of image and 2 of text
    in all blocks, 2 of the second attention in 13.
    """
    with torch.device("meta"):
        network = SD3Transformer2DModel(
            **SD3, **MEDIUM, pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm"
        )
    layer = 1536 * 1536 + 1536
    more = 13 * (4 + 3) * layer + 64 * (4 * 24 + 2 * 13)
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_028_328_000 + more
