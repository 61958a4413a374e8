"""Small genuine pipelines of flow-matching transformers with random weights, built from diffusers' own classes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

import tiny

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def clip(width: int, projected: bool) -> Any:
    tokens = tiny.tokenizer()
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokens), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=16, projection_dim=width, bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
        )
    )  # fmt: skip


def t5(width: int) -> tuple[T5Tokenizer, T5EncoderModel]:
    words = ["<pad>", "</s>", "<unk>", "▁", *tiny.LETTERS]
    tokens = T5Tokenizer(vocab=[(word, -1.0) for word in words], extra_ids=0)
    config = T5Config(
        vocab_size=len(tokens),
        d_model=width,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return tokens, T5EncoderModel(config)


def qwen(width: int, layers: int, whole: bool) -> tuple[Qwen2Tokenizer, Any]:
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *tiny.LETTERS, "Ġ", "Ċ"]
    tokens = Qwen2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], pad_token="<|endoftext|>")
    tokens.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokens.chat_template = CHAT
    kind = Qwen3ForCausalLM if whole else Qwen3Model
    config = Qwen3Config(
        vocab_size=len(tokens), hidden_size=width, intermediate_size=16, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return tokens, kind(config)


def vae(kind: Any = AutoencoderKL, **options: Any) -> Any:
    """Of images 4 times as large as its latents, of 4 channels."""
    return kind(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=32, layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8), **options,
    )  # fmt: skip


def quiet(pipeline: Any) -> Any:
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
            if name == "transformer":  # some families start with last layers of zeros, whose images say nothing
                for parameter in part.parameters():
                    if parameter.abs().max() == 0:
                        torch.nn.init.normal_(parameter, std=0.1)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sd3(seed: int = 0, with_t5: bool = True, **scheduler: Any) -> StableDiffusion3Pipeline:
    torch.manual_seed(seed)
    tokens, encoder = t5(32) if with_t5 else (None, None)
    made = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
            pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | scheduler)),
        vae=vae(shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(8, True), tokenizer=tiny.tokenizer(), text_encoder_2=clip(8, True),
        tokenizer_2=tiny.tokenizer(), text_encoder_3=encoder, tokenizer_3=tokens,
    )  # fmt: skip
    return quiet(made)


def flux(seed: int = 0, guidance_embeds: bool = True, **scheduler: Any) -> FluxPipeline:
    torch.manual_seed(seed)
    tokens, encoder = t5(16)
    made = FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=8, guidance_embeds=guidance_embeds,
            axes_dims_rope=(2, 2, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 3.0, "use_dynamic_shifting": True} | scheduler)),
        vae=vae(shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(8, False), tokenizer=tiny.tokenizer(), text_encoder_2=encoder, tokenizer_2=tokens,
    )  # fmt: skip
    return quiet(made)


def z_image(seed: int = 0, **scheduler: Any) -> ZImagePipeline:
    torch.manual_seed(seed)
    tokens, encoder = qwen(16, 2, whole=False)
    made = ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
            axes_dims=[8, 4, 4], axes_lens=[1024, 64, 64],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 6.0} | scheduler)),
        vae=vae(shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=encoder, tokenizer=tokens,
    )  # fmt: skip
    torch.nn.init.normal_(made.transformer.x_pad_token, std=0.02)
    torch.nn.init.normal_(made.transformer.cap_pad_token, std=0.02)
    return quiet(made)


def flux_2(seed: int = 0, is_distilled: bool = False, **scheduler: Any) -> Flux2KleinPipeline:
    torch.manual_seed(seed)
    tokens, encoder = qwen(8, 28, whole=True)
    made = Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=24, timestep_guidance_channels=16, axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=False,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 3.0, "use_dynamic_shifting": True} | scheduler)),
        vae=vae(AutoencoderKLFlux2, patch_size=(2, 2)),
        text_encoder=encoder, tokenizer=tokens, is_distilled=is_distilled,
    )  # fmt: skip
    with torch.no_grad():  # what the running statistics of a trained VAE are
        made.vae.bn.running_mean.normal_(std=0.1)
        made.vae.bn.running_var.uniform_(0.5, 1.5)
    return quiet(made)


PIPELINES = {"sd3": sd3, "flux": flux, "z-image": z_image, "flux-2": flux_2}
