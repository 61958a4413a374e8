"""The first blocks of a flow-matching transformer: from a latent to the image tokens behind one of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tastemaker.diffusion.model import Model
from tastemaker.errors import ModelError
from tastemaker.models.flow_transformer import FlowTransformer
from tastemaker.models.inner_output import inner_output
from tastemaker.types import Cond

LARGEST = 16
"""Places to a side of maps, about as many as the bottleneck of a U-Net has: of an image of 1024 pixels the tokens of
Stable Diffusion 3 are 25 MB, which would be kept for each image that a reward model learns from."""


def require_transformer(model: Model, source: str, blocks: int | None) -> FlowTransformer:
    """The model. Raises ModelError where its network is no flow-matching transformer, or has fewer blocks."""
    if not isinstance(model, FlowTransformer):
        raise ModelError(
            f"the network of {source} is a {type(model.network).__name__}, but a reward model of kind transformer is "
            "made from the blocks of a flow-matching transformer: take kind unet for a U-Net, or kind clip"
        )
    there = _count(model)
    if blocks is not None and blocks > there:
        raise ModelError(f"blocks is {blocks}, but the transformer of {source} has {there}")
    return model


def _count(model: FlowTransformer) -> int:
    return sum(len(getattr(model.network, name)) for name in model.family.blocks)


class TransformerEncoder:
    """The first blocks of a model's transformer, half of them where `blocks` is None. The others are dropped.

    Raises ModelError, as `require_transformer` does.
    """

    part = "transformer"

    def __init__(self, model: Model, source: str, blocks: int | None = None) -> None:
        self.model = require_transformer(model, source, blocks)
        self.blocks = max(1, _count(self.model) // 2) if blocks is None else blocks
        self.last = self._drop_others()
        with torch.no_grad():
            x = torch.zeros(1, *model.latent_shape, device=model.device)
            maps = self.maps(x, torch.zeros(1, device=model.device), model.encode([""], 1.0))
        self.channels, self.side = maps.shape[1], maps.shape[-1]

    def maps(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """[N,C,h,w] the image tokens behind the last kept block, of latents x [N,*D] at training times t [N].

        Of more than LARGEST to a side, means of neighbours.
        """
        answer = inner_output(self.last, lambda: self.model.predict(x, t, cond))
        height, width = (side // self.model.process.patch for side in x.shape[-2:])
        tokens = self.model.family.image_tokens(answer, height * width)
        maps = tokens.float().transpose(1, 2).unflatten(2, (height, width))
        return F.adaptive_avg_pool2d(maps, (min(height, LARGEST), min(width, LARGEST)))

    def _drop_others(self) -> nn.Module:
        left, last = self.blocks, None
        for name in self.model.family.blocks:
            kept = getattr(self.model.network, name)[:left]
            setattr(self.model.network, name, kept)
            left -= len(kept)
            last = kept[-1] if len(kept) else last
        assert last is not None
        return last
