"""Whether the numbers in a pipeline's configs make a model that can be trained here."""

from __future__ import annotations

import math
from typing import Any

from diffusers.models.unets.unet_2d import UNet2DModel

from tastemaker.errors import ModelError


def sample_size(config: Any, part: str = "unet") -> tuple[int, int]:
    """Height and width of the latents, by `sample_size` of the config of a network, a number or two.

    `part` is the network's name in the pipeline. Raises ModelError.
    """
    size = config["sample_size"]
    if not size:
        raise ModelError(f"the model does not say how large its images are: set sample_size in its {part}/config.json")
    sides = list(size) if isinstance(size, (list, tuple)) else [size, size]
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides) or len(sides) != 2:
        raise ModelError(
            f"sample_size in the model's {part}/config.json is {size!r}, but must be a whole number above 0, or two "
            "(height and width)"
        )
    return sides[0], sides[1]


def resized(
    latent_shape: tuple[int, ...], scale: int, height: int | None, width: int | None, multiple: int
) -> tuple[int, ...]:
    """The latent shape for images of height x width pixels, which must be multiples of `multiple`; None keeps a side.

    Raises ModelError.
    """
    sides = list(latent_shape[-2:])
    for index, (name, pixels) in enumerate((("height", height), ("width", width))):
        if pixels is None:
            continue
        if pixels <= 0 or pixels % multiple:
            raise ModelError(f"sampling.{name} is {pixels}, but this model needs a multiple of {multiple}")
        sides[index] = pixels // scale
    return (*latent_shape[:-2], *sides)


def require_latent(pipeline: Any) -> None:
    """Raises ModelError where a StableDiffusionPipeline is none that can be trained here."""
    for part in ("tokenizer", "text_encoder", "unet", "vae"):
        if getattr(pipeline, part, None) is None:
            raise ModelError(f"the model has no {part}")
    unet, vae = pipeline.unet.config, pipeline.vae.config
    sample_size(unet)
    _require_channels(unet)
    _require_plain(unet)
    _require_vae(vae, unet["in_channels"])
    _require_text(pipeline, unet)


def require_pixels(pipeline: Any) -> None:
    """Raises ModelError where a pixel-space pipeline's network is none that can be trained here."""
    unet = pipeline.unet
    if not isinstance(unet, UNet2DModel):
        raise ModelError(f"the model's network is a {type(unet).__name__}, but a pixel-space one must be a UNet2DModel")
    config = unet.config
    multiple = 2 ** (len(config["block_out_channels"]) - 1)
    for side in sample_size(config):
        if side % multiple:
            raise ModelError(
                f"sample_size in the model's unet/config.json is {side}, but must be a multiple of {multiple}"
            )
    channels = config["in_channels"]
    if channels not in (1, 3):
        raise ModelError(f"the model's images have {channels} channels, but only 1 (grey) and 3 (RGB) are known here")
    _require_channels(config)
    if config["class_embed_type"] is not None:
        raise ModelError(
            f"the model embeds classes by {config['class_embed_type']!r}, but only class indices "
            "(num_class_embeds, class_embed_type null) are known here"
        )
    if config["time_embedding_type"] == "fourier":
        raise ModelError(
            "the model's network takes noise levels (time_embedding_type 'fourier', of score-based models), but this "
            "version trains networks that take times"
        )
    learned, times = config.get("num_train_timesteps"), pipeline.scheduler.config["num_train_timesteps"]
    if config["time_embedding_type"] == "learned" and learned is not None and learned < times:
        raise ModelError(f"the model's network knows {learned} times, but its scheduler has {times}")


def require_flow_parts(pipeline: Any, channels: int) -> None:
    """Raises ModelError where the VAE of a flow transformer's pipeline does not fit latents of so many channels."""
    vae = pipeline.vae.config
    _require_vae_channels(vae, channels, "transformer")
    _require_factor(vae)
    shift = vae.get("shift_factor")
    if shift is not None and (
        isinstance(shift, bool) or not isinstance(shift, (int, float)) or not math.isfinite(shift)
    ):
        raise ModelError(f"the model's vae/config.json says shift_factor {shift!r}, but it must be a number")
    for key in ("latents_mean", "latents_std"):
        if vae.get(key):
            raise ModelError(f"the model's vae/config.json says {key}, which its pipeline does not use: remove it")


def _require_channels(config: Any) -> None:
    channels, out = config["in_channels"], config["out_channels"]
    if out == 2 * channels:
        raise ModelError(
            f"the model predicts its own variance ({out} channels out, {channels} in), which this version cannot "
            "train: give a model with a fixed variance"
        )
    if out != channels:
        more = ", as for inpainting or image editing" if channels > out else ""
        raise ModelError(f"the model's network has {out} channels out but {channels} in{more}: expected as many")


def _require_plain(unet: Any) -> None:
    """Raises ModelError where a U-Net takes more than a time and a prompt."""
    inputs = {
        "class_embed_type": "a class or a further time",
        "num_class_embeds": "a class",
        "time_cond_proj_dim": "the guidance weight, as networks that were distilled from guided ones are",
    }
    for key, what in inputs.items():
        if unet.get(key) is not None:
            raise ModelError(f"the model's network takes {what} ({key} {unet[key]!r}), which this version does not do")
    if unet.get("addition_embed_type") not in (None, "text"):
        raise ModelError(
            f"the model's network takes more than the prompt (addition_embed_type {unet['addition_embed_type']!r}), "
            "as in SDXL, but this version trains Stable Diffusion 1.x and 2.x"
        )
    if unet.get("encoder_hid_dim_type") not in (None, "text_proj"):
        raise ModelError(
            "the model's network takes more than the prompt (encoder_hid_dim_type "
            f"{unet['encoder_hid_dim_type']!r}), which this version does not do"
        )


def _require_vae_channels(vae: Any, channels: int, part: str) -> None:
    if vae["latent_channels"] != channels:
        raise ModelError(
            f"the model's {part} takes latents of {channels} channels, but its vae makes {vae['latent_channels']}"
        )
    if (vae["in_channels"], vae["out_channels"]) != (3, 3):
        raise ModelError(f"the model's vae has {vae['out_channels']} channels, but an image has 3 (RGB)")


def _require_factor(vae: Any) -> None:
    factor = vae.get("scaling_factor")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        raise ModelError(
            f"the model's vae/config.json says scaling_factor {factor!r}, but it must be a number above 0: 0.18215 is "
            "that of Stable Diffusion 1.x and 2.x"
        )


def _require_vae(vae: Any, channels: int) -> None:
    _require_vae_channels(vae, channels, "unet")
    _require_factor(vae)
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if vae.get(key):
            raise ModelError(
                f"the model's vae/config.json says {key}, which StableDiffusionPipeline does not use: remove it, if "
                "the unet was trained without it"
            )


def _require_text(pipeline: Any, unet: Any) -> None:
    text, tokenizer = pipeline.text_encoder.config, pipeline.tokenizer
    wanted = unet["cross_attention_dim"]
    if unet.get("encoder_hid_dim_type") == "text_proj":
        wanted = unet["encoder_hid_dim"]
    for width in wanted if isinstance(wanted, (list, tuple)) else [wanted]:
        if width != text.hidden_size:
            raise ModelError(
                f"the model's unet takes text states of {width} numbers (cross_attention_dim), but its text_encoder "
                f"gives {text.hidden_size} (hidden_size)"
            )
    if len(tokenizer) > text.vocab_size:
        raise ModelError(
            f"the model's tokenizer has {len(tokenizer)} tokens, but its text_encoder knows {text.vocab_size} "
            "(vocab_size)"
        )
    if tokenizer.pad_token is None:
        raise ModelError("the model's tokenizer has no pad_token, with which shorter prompts are filled up")
    positions = text.max_position_embeddings
    if tokenizer.model_max_length > 10**9:  # what transformers puts where tokenizer_config.json says nothing
        tokenizer.model_max_length = positions
    if tokenizer.model_max_length > positions:
        raise ModelError(
            f"the model's tokenizer gives {tokenizer.model_max_length} tokens (model_max_length), but its text_encoder "
            f"reads {positions} (max_position_embeddings)"
        )
