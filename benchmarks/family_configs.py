"""Folders of published models without weights: the numbers in their configs, for plans and counts on the meta device.

Where the numbers come from:

- Stable Diffusion 1.5: the defaults of diffusers' `UNet2DConditionModel`, with text of 768 and 8 heads; the number of
  parameters is the published 859,520,964.
- SDXL: as in `sdxl_full_size.py`, with the number of parameters of the published checkpoint.
- Stable Diffusion 3 medium, 3.5 medium and 3.5 large: `transformer/config.json`, as other public programs quote it.
- FLUX.1-dev: the defaults of diffusers' `FluxTransformer2DModel`, with `guidance_embeds`.
- Z-Image: the defaults of diffusers' `ZImageTransformer2DModel`, which public programs quote too; the number of
  parameters is that of the published Z-Image-Turbo, 6,154,908,736.
- FLUX.2 [klein] base: `transformer/config.json` of klein 4B and 9B, as other public programs quote it; the base
  models have the same architecture, and the VAE is the default of diffusers' `AutoencoderKLFlux2`.
- Text encoders and the other VAEs: the numbers of CLIP ViT-L/14 and bigG/14, T5 v1.1 XXL, Qwen3-4B and Qwen3-8B, and of
  VAEs of 4 and 16 channels. Their configs were not at hand when this was written.

Tokenizers are small ones of the tests, padded to the same lengths.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers import CLIPTextConfig, Qwen3Config, T5Config

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny
import tiny_flow


@dataclass(frozen=True)
class Published:
    """A published model: what each component's folder holds."""

    name: str
    repository: str
    pipeline: str
    pixels: int
    """To a side of the images that it was made for."""
    networks: Mapping[str, Callable[[], Any]]
    """Of diffusers, by component; made on the meta device."""
    encoders: Mapping[str, tuple[str, Any]]
    """Text encoders: their class in transformers, and their config."""
    tokenizers: Mapping[str, Callable[[], Any]]
    scheduler: Callable[[], Any]
    guidance: float = 5.0
    """Of sampling and training; 1 for a model that is given its guidance as an input."""
    index: Mapping[str, Any] = field(default_factory=dict)
    """What else model_index.json holds."""


def clip_l(projected: bool = False) -> tuple[str, Any]:
    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    return kind, CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, projection_dim=768,
    )  # fmt: skip


def clip_g() -> tuple[str, Any]:
    return "CLIPTextModelWithProjection", CLIPTextConfig(
        vocab_size=49408, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
        max_position_embeddings=77, projection_dim=1280, hidden_act="gelu",
    )  # fmt: skip


def t5() -> tuple[str, Any]:
    return "T5EncoderModel", T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip


def qwen(kind: str, large: bool = False) -> tuple[str, Any]:
    return kind, Qwen3Config(
        vocab_size=151936, hidden_size=4096 if large else 2560, intermediate_size=12288 if large else 9728,
        num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        max_position_embeddings=40960, tie_word_embeddings=not large,
    )  # fmt: skip


def vae(channels: int, sample_size: int = 1024, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": channels,
        "sample_size": sample_size,
    }  # fmt: skip
    return AutoencoderKL(**(settings | options))


def vae_16(shift: float, scale: float, **options: Any) -> Any:
    settings = {"use_quant_conv": False, "use_post_quant_conv": False} | options
    return vae(16, shift_factor=shift, scaling_factor=scale, **settings)


def flux_vae() -> Any:
    return vae_16(0.1159, 0.3611)


def sd15_unet() -> Any:
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def flow(**options: Any) -> Callable[[], Any]:
    return lambda: FlowMatchEulerDiscreteScheduler(**options)


def noise_schedule(kind: Any, **options: Any) -> Callable[[], Any]:
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return lambda: kind(**settings, **options)


def sd3(name: str, repository: str, heads: int, layers: int, **options: Any) -> Published:
    return Published(
        name,
        repository,
        "StableDiffusion3Pipeline",
        1024,
        {
            "transformer": lambda: SD3Transformer2DModel(
                sample_size=128, patch_size=2, in_channels=16, out_channels=16, attention_head_dim=64,
                joint_attention_dim=4096, pooled_projection_dim=2048, num_layers=layers, num_attention_heads=heads,
                caption_projection_dim=64 * heads, **options,
            ),
            "vae": lambda: vae_16(0.0609, 1.5305),
        },
        {"text_encoder": clip_l(True), "text_encoder_2": clip_g(), "text_encoder_3": t5()},
        {
            "tokenizer": lambda: tiny.tokenizer(77), "tokenizer_2": lambda: tiny.tokenizer(77),
            "tokenizer_3": t5_tokenizer,
        },
        flow(shift=3.0),
    )  # fmt: skip


def klein(size: str, heads: int, layers: int, single: int, large: bool) -> Published:
    return Published(
        f"FLUX.2 klein base {size}",
        f"black-forest-labs/FLUX.2-klein-base-{size}",
        "Flux2KleinPipeline",
        1024,
        {
            "transformer": lambda: Flux2Transformer2DModel(
                num_layers=layers, num_single_layers=single, num_attention_heads=heads,
                joint_attention_dim=3 * (4096 if large else 2560), guidance_embeds=False,
            ),
            "vae": AutoencoderKLFlux2,
        },
        {"text_encoder": qwen("Qwen3ForCausalLM", large)},
        {"tokenizer": qwen_tokenizer},
        flow(shift=3.0, use_dynamic_shifting=True),
        index={"is_distilled": False},
    )  # fmt: skip


def t5_tokenizer() -> Any:
    return tiny_flow.t5(8)[0]


def qwen_tokenizer() -> Any:
    return tiny_flow.qwen(8, 1, whole=False)[0]


SDXL: dict[str, Any] = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048, "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
CLIP = {"tokenizer": lambda: tiny.tokenizer(77)}
MODELS = (
    Published(
        "Stable Diffusion 1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", "StableDiffusionPipeline", 512,
        {"unet": sd15_unet, "vae": lambda: vae(4, 512)}, {"text_encoder": clip_l()}, CLIP,
        noise_schedule(DDIMScheduler, clip_sample=False, set_alpha_to_one=False),
    ),
    Published(
        "SDXL", "stabilityai/stable-diffusion-xl-base-1.0", "StableDiffusionXLPipeline", 1024,
        {"unet": lambda: UNet2DConditionModel(**SDXL), "vae": lambda: vae(4, scaling_factor=0.13025)},
        {"text_encoder": clip_l(), "text_encoder_2": clip_g()}, CLIP | {"tokenizer_2": lambda: tiny.tokenizer(77)},
        noise_schedule(EulerDiscreteScheduler), index={"force_zeros_for_empty_prompt": True},
    ),
    sd3("Stable Diffusion 3 medium", "stabilityai/stable-diffusion-3-medium-diffusers", 24, 24, pos_embed_max_size=192),
    sd3(
        "Stable Diffusion 3.5 medium", "stabilityai/stable-diffusion-3.5-medium", 24, 24, pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
    ),
    sd3(
        "Stable Diffusion 3.5 large", "stabilityai/stable-diffusion-3.5-large", 38, 38, pos_embed_max_size=192,
        qk_norm="rms_norm",
    ),
    klein("4B", 24, 5, 20, large=False),
    Published(
        "Z-Image", "Tongyi-MAI/Z-Image", "ZImagePipeline", 1024,
        {"transformer": ZImageTransformer2DModel, "vae": flux_vae}, {"text_encoder": qwen("Qwen3Model")},
        {"tokenizer": qwen_tokenizer}, flow(shift=6.0),
    ),
    klein("9B", 32, 8, 24, large=True),
    Published(
        "FLUX.1-dev", "black-forest-labs/FLUX.1-dev", "FluxPipeline", 1024,
        {"transformer": lambda: FluxTransformer2DModel(guidance_embeds=True), "vae": flux_vae},
        {"text_encoder": clip_l(), "text_encoder_2": t5()}, CLIP | {"tokenizer_2": t5_tokenizer},
        flow(shift=3.0, use_dynamic_shifting=True), guidance=1.0,
    ),
)  # fmt: skip
"""By the number of their network's parameters."""


def write(model: Published, folder: Path) -> Path:
    """A folder of a diffusers pipeline without weights, whose shapes `models.load_meta_model` reads."""
    index: dict[str, Any] = {"_class_name": model.pipeline, **model.index}
    for name, make in model.networks.items():
        with torch.device("meta"):
            network = make()
        network.save_config(folder / name)
        index[name] = ["diffusers", type(network).__name__]
    for name, (kind, config) in model.encoders.items():
        config.save_pretrained(folder / name)
        index[name] = ["transformers", kind]
    for name, make in model.tokenizers.items():
        tokenizer = make()
        tokenizer.save_pretrained(folder / name)
        index[name] = ["transformers", type(tokenizer).__name__]
    scheduler = model.scheduler()
    scheduler.save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
