"""FLUX.2 [klein]: latents of 2 x 2 elements of its VAE, and the states of three layers of a Qwen3 language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tastemaker.errors import ModelError
from tastemaker.models.chat_states import TOKENS, chat_states, pooled
from tastemaker.models.flow_process import FlowProcess
from tastemaker.models.flow_transformer import FlowFamily
from tastemaker.models.library_logging import quiet

_LAYERS = (9, 18, 27)
"""After which the states are taken, as in diffusers' pipeline."""


@dataclass(frozen=True)
class PatchedLatents:
    """An AutoencoderKLFlux2: 2 x 2 elements of its latents are channels of one, standardised by running statistics."""

    network: Any

    @property
    def scale(self) -> int:
        """Pixels to a side of one latent element."""
        return 2 * 2 ** (len(self.network.config.block_out_channels) - 1)

    def place(self, device: torch.device) -> None:
        """Freezes the VAE and moves it, in float32."""
        self.network.requires_grad_(False).eval()
        with quiet():
            self.network.to(device, torch.float32)

    def _moments(self) -> tuple[Tensor, Tensor]:
        norm = self.network.bn
        mean, variance = norm.running_mean.view(1, -1, 1, 1), norm.running_var.view(1, -1, 1, 1)
        return mean, (variance + self.network.config.batch_norm_eps).sqrt()

    def decode(self, latents: Tensor) -> Tensor:
        """Images [N,3,H,W] in [0,1], differentiable."""
        mean, deviation = self._moments()
        z = nn.functional.pixel_shuffle(latents * deviation + mean, 2)
        return (self.network.decode(z, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents [N,4C,h/2,w/2] of images [N,3,H,W] in [0,1]: the means of the VAE's posterior."""
        mean, deviation = self._moments()
        z = self.network.encode(2 * images.to(self.network.device) - 1).latent_dist.mean
        return (nn.functional.pixel_unshuffle(z, 2) - mean) / deviation


def _encode(pipeline: Any, prompts: list[str]) -> Mapping[str, Tensor]:
    """`text` [P,L,3C] of the three layers; `pooled` [P,3C], their mean over a prompt's own tokens."""
    states, mask = chat_states(pipeline, prompts, _LAYERS, thinking=False)
    text = torch.cat(states, dim=2)
    return {"text": text, "pooled": pooled(text, mask)}


def _predict(
    network: nn.Module, x: Tensor, t: Tensor, states: Mapping[str, Tensor], embedded_guidance: float | None
) -> Tensor:
    text, one = states["text"], torch.arange(1)
    made = network(
        hidden_states=x.flatten(2).transpose(1, 2), timestep=t / 1000, guidance=None, encoder_hidden_states=text,
        txt_ids=torch.cartesian_prod(one, one, one, torch.arange(text.shape[1])).to(x.device),
        img_ids=torch.cartesian_prod(one, *(torch.arange(side) for side in x.shape[-2:]), one).to(x.device),
        return_dict=False,
    )[0]  # fmt: skip
    return made.transpose(1, 2).reshape(x.shape)


def _shift(config: Any, tokens: int, steps: int) -> float:
    # Not above: `models.families` imports pipelines where their notes about packages that are not installed are silent.
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    return compute_empirical_mu(tokens, steps)


def _shape(pipeline: Any) -> tuple[int, int, int]:
    side = pipeline.default_sample_size // 2
    return pipeline.transformer.config["in_channels"], side, side


def check(pipeline: Any) -> None:
    """Raises ModelError where the numbers in the configs do not fit, and for few-step models."""
    if pipeline.config["is_distilled"]:
        raise ModelError(
            "it is distilled to a few steps (is_distilled in model_index.json), and training by these methods undoes "
            "that: give the base model, as FLUX.2-klein-base-4B"
        )
    network, vae = pipeline.transformer.config, pipeline.vae.config
    if network["in_channels"] != 4 * vae["latent_channels"]:
        raise ModelError(
            f"the model's transformer takes latents of {network['in_channels']} channels, but its vae makes 4 times "
            f"{vae['latent_channels']}"
        )
    layers = pipeline.text_encoder.config.num_hidden_layers
    if layers < max(_LAYERS):
        raise ModelError(
            f"the model's text_encoder has {layers} layers, but states after layer {max(_LAYERS)} are read"
        )


FLUX_2 = FlowFamily(
    name="Flux2KleinPipeline",
    encode=_encode,
    predict=_predict,
    process=lambda pipeline: FlowProcess(pipeline.scheduler, patch=1, shift=_shift),
    images=lambda pipeline: PatchedLatents(pipeline.vae),
    shape=_shape,
    encoders=("text_encoder",),
    tokens=lambda pipeline: (pipeline.tokenizer, TOKENS),
    blocks=("transformer_blocks", "single_transformer_blocks"),
    # Single blocks answer with the text's tokens and the image's behind them.
    image_tokens=lambda answer, count: answer[1] if isinstance(answer, tuple) else answer[:, -count:],
    patch=1,
)
