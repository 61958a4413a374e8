"""A number from image tokens and text states by one attention layer: the head of value networks and reward models."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AttentionPool(nn.Module):
    """One number from image tokens and text states: their mean asks, both answer (CLIP's pool, with text).

    With `side` the tokens of a map of side x side have what OpenAI's AttentionPool2d adds to them: the mean token is
    among those that answer, and each of the side^2 + 1 has a learned position (guided-diffusion, unet.py). The last
    layer starts at 0, so that every answer does.
    """

    def __init__(self, channels: int, text: int, heads: int = 4, side: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.text = nn.Linear(text, channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.out = nn.Linear(channels, 1)
        self.position = None
        if side is not None:
            self.position = nn.Parameter(torch.randn(side * side + 1, channels) / channels**0.5)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, text: Tensor) -> Tensor:
        """[N] from a feature map [N,C,H,W] and text states [N,L,C']."""
        tokens = self.norm(features.flatten(2).transpose(1, 2))
        mean = tokens.mean(dim=1, keepdim=True)
        if self.position is not None:
            tokens = torch.cat([mean, tokens], dim=1) + self.position
            mean = tokens[:, :1]
        asked = torch.cat([tokens, self.text(text)], dim=1)
        pooled, _ = self.attention(mean, asked, asked, need_weights=False)
        return self.out(pooled.squeeze(1)).squeeze(-1)
