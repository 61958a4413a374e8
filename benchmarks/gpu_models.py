"""Stable Diffusion 1.5, SDXL and Stable Diffusion 3 by their public configurations, with random weights.

`--model gpu_models:sd15` in this folder, or with it on PYTHONPATH: nothing is downloaded or read from disk, and the
weights are drawn on the device in the precision that they are used in. `sd15_reduced`, `sdxl_reduced` and `sd3_reduced`
are the same classes with small numbers, for a rehearsal on a CPU.

The network's last layer is scaled so that its answer to noise has a standard deviation of 1, as the noise or velocity
that a trained network predicts: rounding of its answers then acts on log-probabilities as in a trained model. Stable
Diffusion 3 is made without T5, its largest text encoder, which it may leave out. The network then has one token of
zeros in place of T5's 256 (`models/zero_tokens.py`), and less to do than with T5.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import transformers
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from family_configs import MODELS, SDXL, Published, vae, vae_16

from tastemaker.diffusion.model import Model
from tastemaker.errors import ModelError
from tastemaker.models import wrap_pipeline
from tastemaker.models.families import FAMILIES
from tastemaker.models.precision import DTYPES

LAST_LAYERS = {"unet": "conv_out", "transformer": "proj_out"}
"""Of a network, by the name of its component."""


def random_model(
    model: Published,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    network_device: torch.device | str | None = None,
) -> Model:
    """The model with random weights, the same for the same device and precision. Raises ModelError."""
    made = wrap_pipeline(random_pipeline(model, precision, device), precision, device)
    if torch.device(device).type != "meta":
        calibrate(made)
    if network_device is not None:
        made.network.to(network_device)
    if torch.device(device).type == "cuda":
        # What was needed to draw the weights is no part of what a run needs.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return made


def random_pipeline(model: Published, precision: str = "fp32", device: torch.device | str = "cpu") -> Any:
    """Its pipeline, each component in the precision that a run has it in (`models.vae`, `models.flow_transformer`)."""
    family = FAMILIES[model.pipeline]
    dtype = DTYPES[precision]
    text = torch.bfloat16 if family.network == "transformer" and dtype == torch.float16 else dtype
    parts: dict[str, Any] = dict.fromkeys(family.optional)
    torch.manual_seed(0)
    for name, make in model.networks.items():
        with torch.device(device), default_dtype(torch.float32 if name == "vae" else dtype):
            parts[name] = make()
    for name, make in model.tokenizers.items():
        parts[name] = make()
    for name, (kind, config) in model.encoders.items():
        tokens = parts[name.replace("text_encoder", "tokenizer")]
        config = copy.deepcopy(config)
        config.update({"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id})
        with torch.device(device), default_dtype(text):
            parts[name] = getattr(transformers, kind)(config)
    settings = {name: model.index[name] for name in family.settings if name in model.index}
    return family.pipeline(**parts, scheduler=model.scheduler(), **family.options, **settings)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside it new weights are of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def calibrate(model: Model) -> None:
    """Scales the network's last layer so that its answer to noise, in the middle of the process, has deviation 1."""
    layer: Any = model.network.get_submodule(LAST_LAYERS[model.weights.name])
    times = model.process.times
    x = torch.randn(1, *model.latent_shape, device=model.device)
    time = torch.tensor([times[len(times) // 2]], device=model.device)
    deviation = model.predict(x, time, model.encode([""], 1.0)).float().std().item()
    if not 0 < deviation < float("inf"):
        raise ModelError(f"the random network answers with a deviation of {deviation}, which cannot be scaled to 1")
    for parameter in layer.parameters():
        parameter.mul_(1 / deviation)


def without(model: Published, *names: str) -> Published:
    """The model without some of its text encoders and tokenizers."""

    def rest(parts: Mapping[str, Any]) -> dict[str, Any]:
        return {name: part for name, part in parts.items() if name not in names}

    return replace(model, encoders=rest(model.encoders), tokenizers=rest(model.tokenizers))


def reduced(model: Published, network: Any, decoder: Any, text: int) -> Published:
    """The model with another network and VAE, and text encoders of this width."""
    name = FAMILIES[model.pipeline].network
    encoders = {key: (kind, small_text(config, text)) for key, (kind, config) in model.encoders.items()}
    return replace(model, networks={name: network, "vae": decoder}, encoders=encoders)


def small_text(config: Any, width: int) -> Any:
    made = copy.deepcopy(config)
    made.update(
        {
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2,
            "projection_dim": width,
        }
    )  # fmt: skip
    return made


SMALL_VAE: dict[str, Any] = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
SD15, XL, SD3 = (
    next(model for model in MODELS if model.name == name)
    for name in ("Stable Diffusion 1.5", "SDXL", "Stable Diffusion 3 medium")
)
FULL = {"sd15": SD15, "sdxl": XL, "sd3": without(SD3, "text_encoder_3", "tokenizer_3")}
"""By the names that the steps have."""
REDUCED = {
    "sd15": reduced(
        SD15,
        lambda: UNet2DConditionModel(
            sample_size=8, cross_attention_dim=16, attention_head_dim=2, layers_per_block=1,
            block_out_channels=(16, 16, 32, 32), norm_num_groups=4,
        ),
        lambda: vae(4, 64, **SMALL_VAE),
        16,
    ),
    "sdxl": reduced(
        XL,
        lambda: UNet2DConditionModel(
            **(
                SDXL
                | {
                    "sample_size": 16, "block_out_channels": (16, 16, 32), "transformer_layers_per_block": (1, 1, 2),
                    "attention_head_dim": (1, 2, 2), "cross_attention_dim": 32, "addition_time_embed_dim": 8,
                    "projection_class_embeddings_input_dim": 6 * 8 + 16, "norm_num_groups": 4, "layers_per_block": 1,
                }
            )
        ),
        lambda: vae(4, 128, scaling_factor=0.13025, **SMALL_VAE),
        16,
    ),
    "sd3": reduced(
        FULL["sd3"],
        lambda: SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=16, out_channels=16, attention_head_dim=16, num_layers=2,
            num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32,
            pos_embed_max_size=16,
        ),
        lambda: vae_16(0.0609, 1.5305, **SMALL_VAE),
        16,
    ),
}  # fmt: skip
"""The same families with small numbers: images of 64 and 128 pixels."""
sd15, sdxl, sd3 = (partial(random_model, FULL[name]) for name in ("sd15", "sdxl", "sd3"))
sd15_reduced, sdxl_reduced, sd3_reduced = (partial(random_model, REDUCED[name]) for name in ("sd15", "sdxl", "sd3"))
