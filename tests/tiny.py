"""Small genuine diffusers pipelines with random weights, built on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tokenizer(length: int = 16) -> CLIPTokenizer:
    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=length)


def pipeline(seed: int = 0, **scheduler: Any) -> StableDiffusionPipeline:
    """A Stable Diffusion with 8x8 latents and 32x32 images, in float32."""
    torch.manual_seed(seed)
    tokens = tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=16, bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=32, layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
    )  # fmt: skip
    settings = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
        "set_alpha_to_one": False, "steps_offset": 1,
    }  # fmt: skip
    made = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokens, unet=unet, scheduler=DDIMScheduler(**(settings | scheduler)),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def folder(path: Path, seed: int = 0, **scheduler: Any) -> Path:
    """`pipeline` saved as a checkpoint."""
    pipeline(seed, **scheduler).save_pretrained(path)
    return path


def pixels(seed: int = 0, channels: int = 1, classes: int | None = None, unet: dict | None = None, **scheduler: Any):
    """A DDPMPipeline of 16x16 images in float32, without names for its classes."""
    torch.manual_seed(seed)
    settings = {
        "sample_size": 16, "in_channels": channels, "out_channels": channels, "layers_per_block": 1,
        "block_out_channels": (8, 16), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 4, "attention_head_dim": 4,
        "num_class_embeds": classes,
    }  # fmt: skip
    made = DDPMPipeline(UNet2DModel(**(settings | (unet or {}))), DDPMScheduler(**scheduler))
    made.set_progress_bar_config(disable=True)
    return made


def xl(seed: int = 0, *, force_zeros: bool = True, **scheduler: Any) -> StableDiffusionXLPipeline:
    """An SDXL with 8x8 latents and 16x16 images, in float32."""
    torch.manual_seed(seed)
    tokens = tokenizer()
    text: dict[str, Any] = {
        "vocab_size": len(tokens), "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
    }  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=20, attention_head_dim=(1, 2), norm_num_groups=4, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=4, transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 4 + 6,
    )  # fmt: skip
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=16, layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), scaling_factor=0.13025, force_upcast=True,
    )  # fmt: skip
    settings = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
        "set_alpha_to_one": False, "steps_offset": 1,
    }  # fmt: skip
    made = StableDiffusionXLPipeline(
        vae=vae, text_encoder=CLIPTextModel(CLIPTextConfig(**text)), tokenizer=tokens, tokenizer_2=tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(
            CLIPTextConfig(**(text | {"hidden_size": 12, "projection_dim": 6}))
        ),
        unet=unet, scheduler=DDIMScheduler(**(settings | scheduler)), force_zeros_for_empty_prompt=force_zeros,
        add_watermarker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made
