"""The protocols of models: what sampling, training and evaluation use of one. Letters in shapes: types.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from tastemaker.diffusion.process import Process
from tastemaker.types import Cond

if TYPE_CHECKING:
    from tastemaker.models.network_weights import NetworkWeights
    from tastemaker.models.prompt_states import PromptStates
    from tastemaker.models.tuning import Tuning


class Denoiser(Protocol):
    """What sampling needs of a model."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """D, channels first; its last two are height and width, which may differ."""
        ...

    @property
    def device(self) -> torch.device:
        """Where latents and states are."""
        ...

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Estimate of x_0, [N,*D], guidance included; t [N] holds training times.

        In float64: near the image a step's noise is small, and rounding the estimate to float32 would move the
        log-probability by as much as the ratio may be off before the first update.
        """
        ...


class Model(Denoiser, Protocol):
    """A text-to-image model. This is all that the package uses of one, so a family of models is a class with these."""

    network: nn.Module
    """What is trained. The loop puts the wrapped (distributed) module here, and only it is ever called."""

    negative_prompt: str
    """What guidance moves away from, in `encode` from now on; empty is no prompt."""

    embedded_guidance: float | None
    """The guidance weight that the network is given as an input, as by FLUX.1-dev; None for one that takes none.

    Where it takes one, to set None is to set the model's own.
    """

    @property
    def weights(self) -> NetworkWeights:
        """The network's weights: what is trained of them, the reference, loading and saving."""
        ...

    @property
    def process(self) -> Process:
        """The noising process that the network was trained on."""
        ...

    @property
    def scale(self) -> int:
        """Pixels to a side of one latent element."""
        ...

    @property
    def components(self) -> Mapping[str, nn.Module]:
        """The networks beside the trained one by name, such as `text_encoder` and `vae`."""
        ...

    @property
    def prompt_states(self) -> Mapping[str, PromptStates]:
        """What `encode` keeps of prompts, by a name for each kind of states."""
        ...

    def resize(self, height: int | None, width: int | None) -> None:
        """Makes images of height x width pixels from now on; None keeps what it is.

        Raises ModelError where the latents would not fit.
        """
        ...

    def tune(self, tuning: Tuning, seed: int = 0) -> None:
        """Makes the network trainable, by adapters (drawn from `seed`) or in full."""
        ...

    def check(self, prompts: Sequence[str]) -> None:
        """Raises PromptError where a prompt is none that the model can be conditioned on."""
        ...

    def encode(self, prompts: Sequence[str], guidance: float, *, pooled: bool = False) -> Cond:
        """The conditioning of N = len(prompts) rows; states are computed once for each different prompt, and cached.

        With `pooled` the states have `pooled` [P,C], one state for each prompt.
        """
        ...

    def clear_prompt_cache(self) -> None:
        """Drops the states that `encode` has cached, hundreds of kB for each prompt."""
        ...

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's own output [N,*D] for the rows' prompts, without guidance: one call of it."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """Images [N,3,H,W] in [0,1], differentiable."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents [N,*D] of images [N,3,H,W] in [0,1], without gradient: what `decode` would show again."""
        ...

    def usage(self, base: str) -> str:
        """Python code that loads, with diffusers alone, what `weights.save` wrote into `adapter` or `model`."""
        ...


def image_size(model: Model) -> tuple[int, int]:
    """Height and width in pixels of the images that a model makes."""
    height, width = model.latent_shape[-2:]
    return height * model.scale, width * model.scale
