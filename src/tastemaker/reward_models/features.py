"""The frozen features of all compared images: computed once, since only the head on top of them learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from tastemaker.data.captioned_images import fitted
from tastemaker.data.images import to_tensor
from tastemaker.errors import DataError
from tastemaker.reward_models.comparisons import Comparisons, Task, opened
from tastemaker.rewards.preferences.backbones import Backbone

BATCH = 32
"""Images in one pass of the backbone."""


@dataclass(frozen=True)
class Features:
    """Features of R rows, each an image with its prompt, on the CPU. Empty tensors where they cannot be kept."""

    backbone: Backbone
    x: Tensor
    """[R,...] inputs of the backbone; kept where features are computed anew for each time and noise."""
    image: Tensor
    """[R,...] with the row's prompt."""
    image_free: Tensor
    """[R,...] with the empty prompt; kept where prompts are dropped."""
    text: Tensor
    """[P,...] of the prompts; the first is the empty one."""
    prompts: tuple[str, ...]
    """P, the first empty."""
    prompt_of: Tensor
    """[R] index of each row's prompt."""
    rows: dict[tuple[int, str], int]
    """Row of an image, by its index in the comparisons, and a prompt."""
    resize: bool = False
    """Whether images of another size are scaled."""

    def rows_of(self, task: Task) -> list[int]:
        """The rows of a task's images, in their order."""
        return [self.rows[image, task.prompt] for image in task.images]

    def inputs(self, found: Comparisons, task: Task) -> Tensor:
        """[K,...] the backbone's inputs for a task's images, read again. Raises DataError."""
        sources = [found.images[image] for image in task.images]
        pixels = [_pixels(opened(source), source.where, self.backbone.pixels, self.resize) for source in sources]
        return torch.cat([self.backbone.read(one[None]) for one in pixels])

    def rewards(
        self, head: nn.Module, rows: Tensor, dropped: Tensor | None = None, moment: Moment | None = None
    ) -> Tensor:
        """[N] rewards of rows [N] int64, without the prompt where `dropped` [N] bool."""
        device = self.backbone.device
        prompts = self.prompt_of[rows] if dropped is None else self.prompt_of[rows].where(~dropped, 0)
        if self.x.numel():
            moment = moment or Moment(self.backbone.times[0])
            names = [self.prompts[index] for index in prompts.tolist()]
            with torch.no_grad():
                image = self.backbone.images(self.x[rows], names, moment.t, moment.noise)
        else:
            image = self.image[rows]
            if dropped is not None and dropped.any():
                free = dropped.reshape(-1, *[1] * (image.ndim - 1))
                image = torch.where(free, self.image_free[rows], image)
        return head(image.to(device), self.text[prompts].to(device))


@dataclass(frozen=True)
class Moment:
    """At which training time images are looked at, and the noise [N,*D] that they get for it."""

    t: int
    noise: Tensor | None = None


def compute(
    found: Comparisons,
    backbone: Backbone,
    *,
    dropped: bool,
    resize: bool = False,
    advance: Callable[[int], None] = lambda images: None,
) -> Features:
    """The features of all compared images. `advance` is called with the number of images after each batch.

    With `dropped` also those without the prompt. Images of another size than the model's raise DataError, or are scaled
    and cut in the middle with `resize`. Also raised where an image cannot be read.
    """
    keys = list(dict.fromkeys((image, task.prompt) for task in found.tasks for image in task.images))
    prompts = ("", *dict.fromkeys(prompt for _, prompt in keys if prompt))
    place = {prompt: index for index, prompt in enumerate(prompts)}
    anew = backbone.times != (0,)
    x, image, free = [], [], []
    with torch.no_grad():
        for start, pixels in _batches([index for index, _ in keys], found, backbone, resize):
            asked = [prompt for _, prompt in keys[start : start + len(pixels)]]
            inputs = backbone.read(pixels)
            if anew:
                x.append(inputs.cpu())
            else:
                image.append(backbone.images(inputs, asked, 0).cpu())
                if dropped:
                    free.append(backbone.images(inputs, [""] * len(asked), 0).cpu())
            advance(len(pixels))
        text = backbone.texts(prompts).cpu()
    join = lambda parts: torch.cat(parts) if parts else torch.empty(0)  # noqa: E731
    return Features(
        backbone, join(x), join(image), join(free), text, prompts,
        torch.tensor([place[prompt] for _, prompt in keys]), {key: row for row, key in enumerate(keys)},
        resize,
    )  # fmt: skip


def first_input(found: Comparisons, backbone: Backbone, resize: bool = False) -> Tensor:
    """[1,...] the backbone's input for the first image. Raises DataError, as `compute` does."""
    source = found.images[0]
    return backbone.read(_pixels(opened(source), source.where, backbone.pixels, resize)[None])


def _batches(
    images: Sequence[int], found: Comparisons, backbone: Backbone, resize: bool
) -> Iterator[tuple[int, Tensor]]:
    """Batches [N,3,H,W] of images of one size, each with the place of its first."""
    side = backbone.pixels
    waiting: list[Tensor] = []
    for place, index in enumerate(images):
        source = found.images[index]
        pixels = _pixels(opened(source), source.where, side, resize)
        if waiting and (len(waiting) == BATCH or waiting[0].shape != pixels.shape):
            yield place - len(waiting), torch.stack(waiting)
            waiting = []
        waiting.append(pixels)
    if waiting:
        yield len(images) - len(waiting), torch.stack(waiting)


def _pixels(image: Image.Image, where: str, side: int | None, resize: bool) -> Tensor:
    if side is None or image.size == (side, side):
        return to_tensor(image)
    if not resize:
        raise DataError(
            f"{where}: the image has {image.width} x {image.height} pixels, but the model reads {side} x {side}: "
            "give the images' own --size, or --resize to scale them"
        )
    return fitted(image, side, side)
