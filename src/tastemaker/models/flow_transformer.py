"""Flow-matching transformers of diffusers: all that their families share. Each family is a `FlowFamily` in its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tastemaker.errors import ModelError
from tastemaker.models.config_checks import resized
from tastemaker.models.flow_process import FlowProcess
from tastemaker.models.guidance import guided_x0
from tastemaker.models.library_logging import quiet
from tastemaker.models.network_weights import NetworkWeights
from tastemaker.models.precision import DTYPES, computing_in
from tastemaker.models.prompt_length import LongPrompts
from tastemaker.models.prompt_states import PromptStates, conditioned
from tastemaker.models.text_encoders import place
from tastemaker.models.tuning import Tuning
from tastemaker.models.usage import usage
from tastemaker.types import Cond


class Images(Protocol):
    """Latents to images and back; `models.vae.LatentImages` is one."""

    @property
    def scale(self) -> int:
        """Pixels to a side of one latent element."""
        ...

    def place(self, device: torch.device) -> None:
        """Freezes the VAE and moves it, in float32."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images [N,3,H,W] in [0,1], differentiable."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Latents [N,*D] of images [N,3,H,W] in [0,1], without gradient."""
        ...


@dataclass(frozen=True)
class FlowFamily:
    """What is a family's own. `pipeline` is a loaded one of its diffusers class."""

    name: str
    """The pipeline's class in diffusers."""
    encode: Callable[[Any, list[str]], Mapping[str, Tensor]]
    """Of a pipeline and prompts: states by name, among them `text` [P,L,C] and `pooled` [P,C]."""
    predict: Callable[[nn.Module, Tensor, Tensor, Mapping[str, Tensor], float | None], Tensor]
    """Of the network, latents [N,*D], training times [N] in the latents' precision, states [N,...] and the embedded
    guidance: the velocity eps - x_0 [N,*D]. It converts times and layouts to what the network takes."""
    process: Callable[[Any], FlowProcess]
    """Of a pipeline: the process, with the times that the pipeline samples at."""
    images: Callable[[Any], Images]
    """Of a pipeline: what makes images of latents."""
    shape: Callable[[Any], tuple[int, int, int]]
    """Of a pipeline: [C,H,W] of the latents of the images that it makes where no size is given."""
    encoders: tuple[str, ...]
    """Names of the text encoders, of which some may be missing."""
    tokens: Callable[[Any], tuple[Any, int]]
    """Of a pipeline: the tokenizer that reads most, and how many tokens of a prompt are read."""
    blocks: tuple[str, ...] = ("transformer_blocks",)
    """Names of the network's lists of blocks, in the order in which they are called."""
    image_tokens: Callable[[Any, int], Tensor] = lambda answer, count: answer[1]
    """Of a block's answer and the number of image tokens: these, [N,count,C], row by row."""
    patch: int = 2
    """Latent elements to a side of one of the network's tokens: sides must be multiples of it."""
    largest: Callable[[Any], int | None] = lambda pipeline: None
    """Of a pipeline: the most latent elements to a side."""
    prepare: Callable[[Any], None] = lambda pipeline: None
    """Of a pipeline: sets up what `encode` and `predict` need of its network."""
    embedded_guidance: Callable[[Any], float | None] = lambda pipeline: None
    """Of a pipeline: the guidance weight that its network is given as an input by default; None where it takes none."""


class FlowTransformer:
    """A pipeline of a flow-matching transformer as a `diffusion.model.Model`."""

    def __init__(
        self,
        family: FlowFamily,
        pipeline: Any,
        precision: str = "fp32",
        device: torch.device | str = "cpu",
        network_device: torch.device | str | None = None,
    ) -> None:
        self.family, self.pipeline = family, pipeline
        self.device = torch.device(device)
        self.dtype = DTYPES[precision]
        self.images = family.images(pipeline)
        self.images.place(self.device)
        # T5 overflows in float16, and these encoders were trained in bfloat16.
        dtype = torch.bfloat16 if self.dtype == torch.float16 else self.dtype
        for name in family.encoders:
            if (encoder := getattr(pipeline, name)) is not None:
                place(encoder, self.device, dtype)
        with quiet():
            pipeline.transformer.requires_grad_(False).eval().to(network_device or self.device, self.dtype)
        family.prepare(pipeline)
        self.network: nn.Module = pipeline.transformer
        self.process = family.process(pipeline)
        self.latent_shape: tuple[int, ...] = family.shape(pipeline)
        self.weights = NetworkWeights(pipeline.transformer, "transformer")
        self._embedded_guidance: float | None = None
        self._states = PromptStates(self._encode)
        self._long = LongPrompts()
        self.negative_prompt = ""

    @property
    def scale(self) -> int:
        """Pixels to a side of one latent element."""
        return self.images.scale

    @property
    def multiple(self) -> int:
        """Of which an image's height and width in pixels must be multiples."""
        return self.scale * self.family.patch

    @property
    def embedded_guidance(self) -> float | None:
        """The guidance weight that the network is given as an input; None for networks that take none.

        To set None is to set the family's own.
        """
        own = self.family.embedded_guidance(self.pipeline)
        return own if self._embedded_guidance is None else self._embedded_guidance

    @embedded_guidance.setter
    def embedded_guidance(self, weight: float | None) -> None:
        self._embedded_guidance = weight

    @property
    def components(self) -> dict[str, nn.Module]:
        """The networks beside the transformer."""
        named = {name: getattr(self.pipeline, name) for name in (*self.family.encoders, "vae")}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def prompt_states(self) -> dict[str, PromptStates]:
        """What it keeps of prompts."""
        return {"states": self._states}

    def resize(self, height: int | None, width: int | None) -> None:
        """Makes images of height x width pixels from now on; None keeps what it is.

        Raises ModelError where the latents would not fit.
        """
        most = self.family.largest(self.pipeline)
        for name, pixels in (("height", height), ("width", width)):
            if pixels is not None and most is not None and pixels > most * self.scale:
                raise ModelError(
                    f"sampling.{name} is {pixels}, but the positions that this model knows end at {most * self.scale} "
                    "pixels"
                )
        self.latent_shape = resized(self.latent_shape, self.scale, height, width, self.multiple)

    def tune(self, tuning: Tuning, seed: int = 0) -> None:
        """Makes the transformer trainable, by adapters (drawn from `seed`) or in full."""
        self.weights.tune(tuning, seed)
        if tuning.gradient_checkpointing:  # of use where a reward's gradient comes through the decoder
            self.pipeline.vae.enable_gradient_checkpointing()

    def check(self, prompts: Sequence[str]) -> None:
        """Any text will do."""

    def encode(self, prompts: Sequence[str], guidance: float, *, pooled: bool = False) -> Cond:
        """The family's states of the prompts, computed once for each different prompt, always with `pooled`."""
        return conditioned([self._states], prompts, guidance, self.device, self.negative_prompt)

    def _encode(self, prompts: list[str]) -> Mapping[str, Tensor]:
        tokenizer, limit = self.family.tokens(self.pipeline)
        with quiet():
            states = self.family.encode(self.pipeline, prompts)
        self._long.look_at(tokenizer, prompts, limit)
        return {name: values.to(self.device) for name, values in states.items()}

    def clear_prompt_cache(self) -> None:
        """Drops the states that are kept."""
        self._states.clear()

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Guided estimate of x_0 [N,*D] in float64, from one pass over both halves of the guidance."""
        return guided_x0(self.predict, self.process, x, t, cond)

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's velocity [N,*D] for the rows' prompts, without guidance."""
        states = {name: cond[name] for name in cond.states}
        with computing_in(self.dtype, self.device):
            return self.family.predict(self.network, x, t.to(x.dtype), states, self.embedded_guidance).to(x.dtype)

    def decode(self, x0: Tensor) -> Tensor:
        """Images [N,3,H,W] in [0,1]."""
        return self.images.decode(x0)

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents [N,*D] of images [N,3,H,W] in [0,1]: the means of the VAE's posterior."""
        return self.images.encode(images)

    def usage(self, base: str) -> str:
        """Python that loads, with diffusers alone, what `save` wrote into the folder `adapter` or `model`."""
        return usage(self.pipeline, self.pipeline.transformer, "transformer", base, full=self.weights.full)
