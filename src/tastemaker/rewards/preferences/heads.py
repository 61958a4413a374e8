"""The part of a reward model that is trained: from features of images and prompts to rewards [N]."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tastemaker.models.attention_pool import AttentionPool
from tastemaker.rewards.preferences.architecture import Architecture
from tastemaker.rewards.preferences.backbones import Backbone, ClipBackbone, DiffusionBackbone, run_layer


class ClipHead(nn.Module):
    """PickScore's model (Kirstain et al. 2023, section 4): exp(temperature) times the cosine of image and text.

    It starts as the CLIP's own projections, and copies of the last `layers` of its image tower; exp(temperature) starts
    at `logit_scale`, or where that is None as the CLIP's own.
    """

    def __init__(self, clip: Any, layers: int, logit_scale: float | None) -> None:
        super().__init__()
        tower = clip.vision_model
        self.layers = nn.ModuleList(
            copy.deepcopy(layer) for layer in tower.encoder.layers[len(tower.encoder.layers) - layers :]
        )
        self.norm = copy.deepcopy(tower.post_layernorm) if layers else None
        self.image = copy.deepcopy(clip.visual_projection)
        self.text = copy.deepcopy(clip.text_projection)
        own = clip.logit_scale.detach()
        self.logit_scale = nn.Parameter(own.clone() if logit_scale is None else torch.full_like(own, logit_scale).log())
        self.requires_grad_(True)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """[N] from pooled states [N,D], or states [N,L,D] before the trained layers, and pooled text states [N,C]."""
        for layer in self.layers:
            image = run_layer(layer, image)
        if self.norm is not None:
            image = self.norm(image[:, 0])
        one, other = F.normalize(self.image(image), dim=-1), F.normalize(self.text(text), dim=-1)
        return self.logit_scale.exp() * (one * other).sum(dim=-1)


class SmallHead(nn.Module):
    """A linear layer, or an MLP with one hidden layer, on frozen features.

    Of a CLIP, whose features of image and text have length 1 and D elements, it sees the image's and the product of
    both, times sqrt(D) and D, so that elements are about 1. Of a diffusion model it sees means and deviations over
    the map, normalised over them (layer norm).
    """

    def __init__(self, width: int, text: int, hidden: int, dropout: float) -> None:
        super().__init__()
        inputs = width + (width if text else 0)
        self.norm = None if text else nn.LayerNorm(width, elementwise_affine=False)
        if hidden:
            self.net = nn.Sequential(
                nn.Dropout(dropout), nn.Linear(inputs, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, 1)
            )
        else:
            self.net = nn.Sequential(nn.Dropout(dropout), nn.Linear(inputs, 1))
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """[N] from features [N,D] and text features [N,D], or [N,0]."""
        if self.norm is not None:
            return self.net(self.norm(image)).squeeze(-1)
        width = image.shape[-1]
        return self.net(torch.cat([image * width**0.5, image * text * width], dim=-1)).squeeze(-1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside it torch's random numbers are those of a seed; outside they go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def new_head(architecture: Architecture, backbone: Backbone, seed: int) -> nn.Module:
    """A head as it is before training, its weights drawn from `seed`, on the backbone's device."""
    with seeded(seed):
        head = _head(architecture, backbone)
    return head.to(backbone.device)


def _head(architecture: Architecture, backbone: Backbone) -> nn.Module:
    if isinstance(backbone, ClipBackbone):
        if architecture.kind == "clip":
            return ClipHead(backbone.model, architecture.layers, architecture.logit_scale)
        width = backbone.model.visual_projection.out_features
        return SmallHead(width, width, architecture.hidden, architecture.dropout)
    assert isinstance(backbone, DiffusionBackbone)
    maps = backbone.encoder
    if architecture.kind == "head":
        return SmallHead(2 * maps.channels, 0, architecture.hidden, architecture.dropout)
    return AttentionPool(maps.channels, backbone.text_channels, architecture.heads, maps.side)
