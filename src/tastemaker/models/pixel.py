"""Pixel-space models: everything that diffusers loads as a DDPMPipeline or DDIMPipeline, with classes or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tastemaker.errors import ModelError, PromptError, nearest
from tastemaker.models.config_checks import require_pixels, resized, sample_size
from tastemaker.models.guidance import guided_x0
from tastemaker.models.library_logging import quiet
from tastemaker.models.network_weights import NetworkWeights
from tastemaker.models.precision import DTYPES, computing_in
from tastemaker.models.prompt_states import PromptStates
from tastemaker.models.schedulers import SchedulerProcess, ddim_scheduler
from tastemaker.models.tuning import Tuning
from tastemaker.types import Cond


class PixelUNet:
    """A pipeline of a UNet2DModel and a scheduler as a `diffusion.model.Model`.

    A model with `num_class_embeds` is conditioned on a class, whose name is the prompt. The names are `id2label` in
    model_index.json, an index to a name or several with commas in between, as for DiTPipeline; without them they are
    "0", "1", ... All names of a class as they are in the table are a prompt too, and so is its index where no class is
    called so: ImageNet has two classes with the name "crane". A model that has one class more than the highest index
    there was trained with a null class, the last one, and can be guided. A model without classes takes any prompt, and
    ignores it.

    A network with 2 C channels out for C in also predicts its variance (Nichol and Dhariwal 2021, section 3.1), in the
    second half of them. That half is not used, and no gradient reaches it: DDIM's noise follows from eta and the
    schedule (Song et al. 2020, eq. 16), as in guided-diffusion's `ddim_sample`.
    """

    def __init__(
        self,
        pipeline: Any,
        precision: str = "fp32",
        device: torch.device | str = "cpu",
        network_device: torch.device | str | None = None,
    ) -> None:
        require_pixels(pipeline)
        self.pipeline = pipeline
        self.device = torch.device(device)
        self.dtype = DTYPES[precision]
        unet = pipeline.unet.requires_grad_(False).eval()
        with quiet():
            unet.to(network_device or self.device, self.dtype)
        self.network: nn.Module = unet
        self.process = SchedulerProcess(ddim_scheduler(pipeline.scheduler, latents=False))
        self.latent_shape = (unet.config.in_channels, *sample_size(unet.config))
        self.weights = NetworkWeights(unet)
        self.negative_prompt = ""
        self.embedded_guidance: float | None = None
        labels = _labels(unet.config.num_class_embeds or 0, pipeline.config.get("id2label"))
        self.classes = _classes(labels)
        """Indices of the classes by name, more than one where classes share it; empty for a model without classes."""
        highest = max(labels, default=0)
        self.null = highest + 1 if unet.config.num_class_embeds == highest + 2 else None
        """Index of the class that stands for none, where the model was trained with one."""

    @property
    def scale(self) -> int:
        """Pixels to a side of one latent element."""
        return 1

    @property
    def multiple(self) -> int:
        """Of which an image's height and width in pixels must be multiples."""
        return 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)

    @property
    def prompt_states(self) -> dict[str, PromptStates]:
        """None: prompts are classes."""
        return {}

    @property
    def components(self) -> dict[str, nn.Module]:
        """None: the U-Net is all there is."""
        return {}

    def resize(self, height: int | None, width: int | None) -> None:
        """Makes images of height x width pixels from now on; None keeps what it is.

        Raises ModelError where the U-Net cannot.
        """
        self.latent_shape = resized(self.latent_shape, self.scale, height, width, self.multiple)

    def tune(self, tuning: Tuning, seed: int = 0) -> None:
        """Makes the U-Net trainable, by adapters (drawn from `seed`) or in full."""
        self.weights.tune(tuning, seed)

    def check(self, prompts: Sequence[str]) -> None:
        """Raises PromptError where a prompt is no class of the model."""
        if not self.classes:
            return
        for prompt in prompts:
            found = self.classes.get(prompt.strip())
            if found is None and (prompt or self.null is None):
                raise PromptError(
                    f"prompts of this model are the names of its classes, and {prompt!r} is none: "
                    f"{nearest(prompt, [name for name in self.classes if not name.isdecimal()] or list(self.classes))}"
                )
            if found is not None and len(found) > 1:
                raise PromptError(
                    f"{prompt!r} is the name of several classes of this model: give the number of one of them, "
                    f"{' or '.join(map(str, found))}"
                )

    def encode(self, prompts: Sequence[str], guidance: float, *, pooled: bool = False) -> Cond:
        """The prompts' classes, one-hot, as `text` [P,1,K] of all K of the network's; zeros [P,1,1] without classes.

        With `pooled` also [P,K]. The empty prompt is the null class, or none at all where there is none, which is good
        for asking for a shape but not for sampling. Raises PromptError where a prompt is no class, and ModelError for
        guidance other than 1 where there is no null class.
        """
        if guidance != 1 and self.null is None:
            lack = "null class" if self.classes else "classes"
            raise ModelError(
                f"sampling.guidance is {guidance}, but this model has no {lack} and cannot be guided: set it to 1"
            )
        self.check([prompt for prompt in (self.negative_prompt, *prompts) if prompt])
        rows = {prompt: index for index, prompt in enumerate(dict.fromkeys(["", self.negative_prompt, *prompts]))}
        text = torch.stack([self._one_hot(prompt) for prompt in rows])
        states = {"text": text, "pooled": text[:, 0]} if pooled else {"text": text}
        index = torch.tensor([rows[prompt] for prompt in prompts], device=self.device)
        return Cond(states, index, guidance, rows[self.negative_prompt])

    def _one_hot(self, prompt: str) -> Tensor:
        """[1,K]"""
        text = torch.zeros(1, self.pipeline.unet.config.num_class_embeds or 1, device=self.device)
        indices = self.classes.get(prompt.strip(), () if self.null is None else (self.null,))
        if indices:
            text[0, indices[0]] = 1
        return text

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Guided estimate of x_0 [N,*D] in float64, from one pass over both halves of the guidance."""
        return guided_x0(self.predict, self.process, x, t, cond)

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's own output [N,*D] for the rows' prompts, without guidance and without a predicted variance."""
        labels = cond["text"][:, 0].argmax(dim=1) if self.classes else None
        with computing_in(self.dtype, self.device):
            output = self.network(x, t, class_labels=labels, return_dict=False)[0]
        return output[:, : x.shape[1]].to(x.dtype)

    def decode(self, x0: Tensor) -> Tensor:
        """Images [N,3,H,W] in [0,1]; grey ones three times over, so that every reward takes them."""
        return (x0 / 2 + 0.5).clamp(0, 1).expand(-1, 3, -1, -1)

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents [N,*D] of images [N,3,H,W] in [0,1]: themselves, in [-1,1], as the mean of the channels if grey."""
        x = 2 * images.to(self.device) - 1
        return x.mean(dim=1, keepdim=True) if self.latent_shape[0] == 1 else x

    def clear_prompt_cache(self) -> None:
        """Nothing is kept of prompts, which are classes."""

    def usage(self, base: str) -> str:
        """Python that loads, with diffusers alone, what `save` wrote into the folder `adapter` or `model`."""
        kind = type(self.pipeline).__name__
        pipe = f"pipe = {kind}.from_pretrained({base})"
        if self.weights.full:
            return (
                f"from diffusers import {kind}, UNet2DModel\n\n{pipe}\n"
                "pipe.unet = UNet2DModel.from_pretrained('model/unet')\n"
            )
        return (
            f"from diffusers import {kind}\nfrom peft import PeftModel\n\n{pipe}\n"
            "PeftModel.from_pretrained(pipe.unet, 'adapter')  # in place\n"
        )


def _labels(count: int, names: Any) -> dict[int, str]:
    """What the classes are called, by index. Raises ModelError where an index is none of the `count` classes."""
    if not count or names is None:
        return {index: str(index) for index in range(count)}
    if not isinstance(names, Mapping) or not all(isinstance(label, str) for label in names.values()):
        raise ModelError('id2label in model_index.json must be a table of names, as in {"0": "tench, Tinca tinca"}')
    wrong = [index for index in names if not str(index).isdecimal() or int(index) >= count]
    if wrong or not names:
        found = wrong[0] if wrong else "none"
        raise ModelError(f"id2label in model_index.json must name classes 0 to {count - 1}, but has {found}")
    return {int(index): label for index, label in names.items()}


def _classes(labels: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    """Indices of the classes by each of their names, by all of them, and by their index where no class is called so."""
    found: dict[str, tuple[int, ...]] = {}
    for index, label in sorted(labels.items()):
        for name in dict.fromkeys(part.strip() for part in (label, *label.split(",")) if part.strip()):
            found[name] = (*found.get(name, ()), index)
    return {str(index): (index,) for index in labels if str(index) not in found} | found
