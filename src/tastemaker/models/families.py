"""The families of models that this version trains, by the class of their pipelines in diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import transformers

# transformers 5 warns once for each image processor that it would rather take from torchvision, which is not
# needed here and has no CPU build; diffusers' pipelines import those names whether or not they use them.
_verbosity = transformers.logging.get_verbosity()
transformers.logging.set_verbosity_error()
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # noqa: E402
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2  # noqa: E402
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel  # noqa: E402
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel  # noqa: E402
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel  # noqa: E402
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel  # noqa: E402
from diffusers.models.unets.unet_2d import UNet2DModel  # noqa: E402
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # noqa: E402
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline  # noqa: E402
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline  # noqa: E402
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline  # noqa: E402
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline  # noqa: E402
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline  # noqa: E402
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (  # noqa: E402
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (  # noqa: E402
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline  # noqa: E402
from transformers import (  # noqa: E402
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5EncoderModel,
    T5Tokenizer,
)

transformers.logging.set_verbosity(_verbosity)

from tastemaker.errors import ModelError  # noqa: E402
from tastemaker.models import flux, flux_2, stable_diffusion_3, z_image  # noqa: E402
from tastemaker.models.config_checks import require_latent, require_pixels, require_xl  # noqa: E402
from tastemaker.models.flow_process import load_flow_scheduler  # noqa: E402
from tastemaker.models.flow_transformer import FlowFamily, FlowTransformer  # noqa: E402
from tastemaker.models.latent_unet import LatentUNet  # noqa: E402
from tastemaker.models.pixel import PixelUNet  # noqa: E402
from tastemaker.models.schedulers import load_scheduler  # noqa: E402
from tastemaker.models.stable_diffusion import SD  # noqa: E402
from tastemaker.models.stable_diffusion_xl import SDXL  # noqa: E402


@dataclass(frozen=True)
class Family:
    """A pipeline class: the classes of its components, how it is loaded, and the model that it becomes."""

    pipeline: Any
    model: Callable[..., Any]
    """Of a pipeline, precision, device and network_device: the `diffusion.model.Model` with the pipeline behind it."""
    parts: Mapping[str, Any]
    """Classes of the components but the scheduler, by name; those that are no torch modules are tokenizers."""
    check: Callable[[Any], None]
    """Raises ModelError where the numbers in the configs do not fit."""
    scheduler: Callable[[Path, str], Any]
    """The scheduler of a folder whose model_index.json names this class for it. Raises ModelError."""
    network: str = "unet"
    """The component that is trained."""
    optional: frozenset[str] = frozenset()
    """Components that model_index.json may leave out, which are then None."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else the pipeline is made with."""
    settings: tuple[str, ...] = ()
    """Keys of model_index.json that the pipeline is made with where they are there, as
    force_zeros_for_empty_prompt."""


def _flow(
    family: FlowFamily, pipeline: Any, check: Callable[[Any], None], parts: Mapping[str, Any], **options: Any
) -> Family:
    """An entry for a flow-matching transformer."""
    model = partial(FlowTransformer, family)
    return Family(pipeline, model, parts, check, load_flow_scheduler, network="transformer", **options)


_PIXELS: dict[str, Any] = {
    "model": PixelUNet, "parts": {"unet": UNet2DModel}, "check": require_pixels,
    "scheduler": partial(load_scheduler, latents=False),
}  # fmt: skip
FAMILIES = {
    "StableDiffusionPipeline": Family(
        StableDiffusionPipeline,
        partial(LatentUNet, SD),
        {
            "tokenizer": CLIPTokenizer,
            "text_encoder": CLIPTextModel,
            "unet": UNet2DConditionModel,
            "vae": AutoencoderKL,
        },
        require_latent,
        partial(load_scheduler, latents=True),
        options={
            "safety_checker": None, "requires_safety_checker": False, "feature_extractor": None, "image_encoder": None,
        },
    ),
    "StableDiffusionXLPipeline": Family(
        StableDiffusionXLPipeline,
        partial(LatentUNet, SDXL),
        {
            "tokenizer": CLIPTokenizer,
            "tokenizer_2": CLIPTokenizer,
            "text_encoder": CLIPTextModel,
            "text_encoder_2": CLIPTextModelWithProjection,
            "unet": UNet2DConditionModel,
            "vae": AutoencoderKL,
        },
        require_xl,
        partial(load_scheduler, latents=True, own_offset=True),
        options={"feature_extractor": None, "image_encoder": None, "add_watermarker": False},
        settings=("force_zeros_for_empty_prompt",),
    ),
    "DDPMPipeline": Family(DDPMPipeline, **_PIXELS),
    "DDIMPipeline": Family(DDIMPipeline, **_PIXELS),
    "StableDiffusion3Pipeline": _flow(
        stable_diffusion_3.SD3, StableDiffusion3Pipeline, stable_diffusion_3.check,
        {
            "tokenizer": CLIPTokenizer, "text_encoder": CLIPTextModelWithProjection,
            "tokenizer_2": CLIPTokenizer, "text_encoder_2": CLIPTextModelWithProjection,
            "tokenizer_3": T5Tokenizer, "text_encoder_3": T5EncoderModel,
            "transformer": SD3Transformer2DModel, "vae": AutoencoderKL,
        },
        optional=frozenset({"tokenizer_3", "text_encoder_3"}),
    ),
    "FluxPipeline": _flow(
        flux.FLUX, FluxPipeline, flux.check,
        {
            "tokenizer": CLIPTokenizer, "text_encoder": CLIPTextModel,
            "tokenizer_2": T5Tokenizer, "text_encoder_2": T5EncoderModel,
            "transformer": FluxTransformer2DModel, "vae": AutoencoderKL,
        },
    ),
    "ZImagePipeline": _flow(
        z_image.Z_IMAGE, ZImagePipeline, z_image.check,
        {
            "tokenizer": Qwen2Tokenizer, "text_encoder": Qwen3Model,
            "transformer": ZImageTransformer2DModel, "vae": AutoencoderKL,
        },
    ),
    "Flux2KleinPipeline": _flow(
        flux_2.FLUX_2, Flux2KleinPipeline, flux_2.check,
        {
            "tokenizer": Qwen2Tokenizer, "text_encoder": Qwen3ForCausalLM,
            "transformer": Flux2Transformer2DModel, "vae": AutoencoderKLFlux2,
        },
        settings=("is_distilled",),
    ),
}  # fmt: skip
"""Pipelines by the name in their model_index.json."""


_REFUSED = {
    "StableDiffusionXLImg2ImgPipeline": (
        "it is a StableDiffusionXLImg2ImgPipeline, as SDXL's refiner, which only finishes images that another model "
        "has begun: give the base model, stabilityai/stable-diffusion-xl-base-1.0"
    )
}
"""Pipelines by name that are given where others are meant, and what to do."""


def family_of(name: Any) -> Family:
    """The family of a pipeline class. Raises ModelError for one that this version does not train."""
    if isinstance(name, str) and name in _REFUSED:
        raise ModelError(_REFUSED[name])
    if not isinstance(name, str) or name not in FAMILIES:
        raise ModelError(f"it is a {name}; this version trains {', '.join(FAMILIES)}")
    return FAMILIES[name]


TOKENIZER_FILES: dict[Any, tuple[set[str], ...]] = {
    CLIPTokenizer: ({"tokenizer.json"}, {"vocab.json", "merges.txt"}),
    T5Tokenizer: ({"tokenizer.json"}, {"spiece.model"}),
    Qwen2Tokenizer: ({"tokenizer.json"}, {"vocab.json", "merges.txt"}),
}
"""Files of which a tokenizer of each class needs one set; without, transformers makes one that knows no word."""
