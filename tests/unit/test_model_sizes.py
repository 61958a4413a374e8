"""Numbers of parameters of published models, from the numbers in their public configs, on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)

SD3: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64,
    "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
}  # fmt: skip
KLEIN: dict[str, Any] = {"guidance_embeds": False, "attention_head_dim": 128, "in_channels": 128}
KLEIN_4B = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 3 * 2560}
KLEIN_9B = {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 3 * 4096}
MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (lambda: SD3Transformer2DModel(**SD3, **MEDIUM, pos_embed_max_size=192), 2_028_328_000),
        (lambda: FluxTransformer2DModel(guidance_embeds=True), 11_901_408_320),
        (lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8), 859_520_964),
        # The index of Z-Image-Turbo's files, the same network, says 12,309,817,472 bytes in bfloat16.
        (lambda: ZImageTransformer2DModel(), 12_309_817_472 // 2),
        # As other public programs count the published models.
        (lambda: Flux2Transformer2DModel(**KLEIN, **KLEIN_4B), 3_875_544_576),
        (lambda: Flux2Transformer2DModel(**KLEIN, **KLEIN_9B), 9_078_581_248),
    ],
    ids=[
        "Stable Diffusion 3 medium",
        "FLUX.1-dev",
        "Stable Diffusion 1.5",
        "Z-Image",
        "FLUX.2 klein 4B",
        "FLUX.2 klein 9B",
    ],
)
def test_parameters_of_published_networks(make, parameters):
    with torch.device("meta"):
        network = make()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_parameters_of_stable_diffusion_3_5_medium():
    """SD 3 medium's and, by hand, the weights that it has besides.

    In 13 of 24 blocks a second attention of the image (four linear layers of 1536 x 1536 with biases) and 3 more
    modulations of the image's norm (as large each); norms of queries and keys, 64 numbers each: 2 of image and 2 of
    text in all blocks, 2 of the second attention in 13.
    """
    with torch.device("meta"):
        network = SD3Transformer2DModel(
            **SD3, **MEDIUM, pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm"
        )
    layer = 1536 * 1536 + 1536
    more = 13 * (4 + 3) * layer + 64 * (4 * 24 + 2 * 13)
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_028_328_000 + more


def test_parameters_of_stable_diffusion_3_5_large():
    """By hand, of width 2432 = 38 heads of 64, with d = 2432.

    A block has for image and text each: modulation (6 d of d, with biases), four attention layers (d x d), a
    feed-forward of d to 4 d and back, and norms of queries and keys, 64 numbers each. The last block's text has a
    modulation of 2 d, no feed-forward and no projection of attention's output. Around them: patches of 2 x 2 x 16 to d,
    text of 4096 to d, time of 256 to d to d, pooled text of 2048 to d to d, the last modulation of 2 d and the
    projection to 64 numbers.
    """

    def layer(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    d = 2432
    stream = layer(d, 6 * d) + 4 * layer(d, d) + layer(d, 4 * d) + layer(4 * d, d) + 2 * 64
    last = layer(d, 2 * d) + 3 * layer(d, d) + 2 * 64
    around = layer(64, d) + layer(4096, d) + layer(256, d) + layer(d, d) + layer(2048, d) + layer(d, d)
    around += layer(d, 2 * d) + layer(d, 64)
    with torch.device("meta"):
        network = SD3Transformer2DModel(
            **SD3, num_layers=38, num_attention_heads=38, caption_projection_dim=d, pos_embed_max_size=192,
            qk_norm="rms_norm",
        )  # fmt: skip
    found = sum(parameter.numel() for parameter in network.parameters())
    assert found == 38 * stream + 37 * stream + last + around
