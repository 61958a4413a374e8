"""guided-diffusion's U-Net by its published definition, as one function of a state dict: a second implementation.

Dhariwal and Nichol 2021, and the modules and names of guided_diffusion/unet.py.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tastemaker.models.guided_diffusion_flags import Flags

GROUPS = 32


class Weights(dict):
    """A state dict that draws what it is asked for and does not have, so that a pass through the network fills it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.random = torch.Generator().manual_seed(seed)

    def draw(self, name: str, *shape: int) -> Tensor:
        if name not in self:
            size = math.prod(shape[1:]) if len(shape) > 1 else 25
            self[name] = torch.randn(shape, generator=self.random) / math.sqrt(size)
        assert tuple(self[name].shape) == shape, name
        return self[name]

    def layer(self, name: str, out: int, *into: int) -> tuple[Tensor, Tensor]:
        return self.draw(f"{name}.weight", out, *into), self.draw(f"{name}.bias", out)


def unet(w: Weights, flags: Flags, x: Tensor, t: Tensor, y: Tensor | None = None, classes: int = 0) -> Tensor:
    """[N,C or 2C,H,W] from images [N,C,H,W], times [N] and classes [N]."""
    base, channels = flags.num_channels, x.shape[1]
    widths = [base * int(factor) for factor in flags.channel_mult.split(",")]
    attends = {flags.image_size // int(side) for side in flags.attention_resolutions.split(",")}
    frequencies = torch.exp(-math.log(10000) * torch.arange(base // 2) / (base // 2))
    angles = t[:, None] * frequencies
    emb = F.linear(torch.cat([angles.cos(), angles.sin()], dim=1), *w.layer("time_embed.0", 4 * base, base))
    emb = F.linear(F.silu(emb), *w.layer("time_embed.2", 4 * base, 4 * base))
    if y is not None:
        emb = emb + w.draw("label_emb.weight", classes, 4 * base)[y]

    def res(name: str, h: Tensor, out: int, change=None) -> Tensor:
        into = h.shape[1]
        inner = F.silu(F.group_norm(h, GROUPS, *w.layer(f"{name}.in_layers.0", into)))
        if change:
            inner, h = change(inner), change(h)
        inner = F.conv2d(inner, *w.layer(f"{name}.in_layers.2", out, into, 3, 3), padding=1)
        size = 2 * out if flags.use_scale_shift_norm else out
        time = F.linear(F.silu(emb), *w.layer(f"{name}.emb_layers.1", size, 4 * base))[:, :, None, None]
        norm = w.layer(f"{name}.out_layers.0", out)
        if flags.use_scale_shift_norm:
            inner = F.group_norm(inner, GROUPS, *norm) * (1 + time[:, :out]) + time[:, out:]
        else:
            inner = F.group_norm(inner + time, GROUPS, *norm)
        inner = F.conv2d(F.silu(inner), *w.layer(f"{name}.out_layers.3", out, out, 3, 3), padding=1)
        return inner + (h if into == out else F.conv2d(h, *w.layer(f"{name}.skip_connection", out, into, 1, 1)))

    def attention(name: str, h: Tensor) -> Tensor:
        count, width, *side = h.shape
        head = flags.num_head_channels if flags.num_head_channels != -1 else width // flags.num_heads
        flat = h.reshape(count, width, -1)
        normed = F.group_norm(flat, GROUPS, *w.layer(f"{name}.norm", width))
        qkv = F.conv1d(normed, *w.layer(f"{name}.qkv", 3 * width, width, 1))
        heads = []
        for index in range(width // head):
            if flags.use_new_attention_order:
                q, k, v = (qkv[:, part * width + index * head :][:, :head] for part in range(3))
            else:
                q, k, v = (qkv[:, (3 * index + part) * head :][:, :head] for part in range(3))
            scores = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(head), dim=-1)  # [N, asked at, answered at]
            heads.append(v @ scores.transpose(1, 2))
        out = F.conv1d(torch.cat(heads, dim=1), *w.layer(f"{name}.proj_out", width, width, 1))
        return (flat + out).reshape(count, width, *side)

    half = lambda h: F.avg_pool2d(h, 2)  # noqa: E731
    double = lambda h: h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)  # noqa: E731
    h = F.conv2d(x, *w.layer("input_blocks.0.0", base, channels, 3, 3), padding=1)
    kept, block = [h], 1
    for level, width in enumerate(widths):
        for _ in range(flags.num_res_blocks):
            h = res(f"input_blocks.{block}.0", h, width)
            if 2**level in attends:
                h = attention(f"input_blocks.{block}.1", h)
            kept.append(h)
            block += 1
        if level < len(widths) - 1:
            if flags.resblock_updown:
                h = res(f"input_blocks.{block}.0", h, width, half)
            else:
                h = F.conv2d(h, *w.layer(f"input_blocks.{block}.0.op", width, width, 3, 3), stride=2, padding=1)
            kept.append(h)
            block += 1
    h = res("middle_block.2", attention("middle_block.1", res("middle_block.0", h, widths[-1])), widths[-1])
    block = 0
    for level, width in reversed(list(enumerate(widths))):
        for layer in range(flags.num_res_blocks + 1):
            h = res(f"output_blocks.{block}.0", torch.cat([h, kept.pop()], dim=1), width)
            place = 1
            if 2**level in attends:
                h, place = attention(f"output_blocks.{block}.1", h), 2
            if level and layer == flags.num_res_blocks:
                name = f"output_blocks.{block}.{place}"
                if flags.resblock_updown:
                    h = res(name, h, width, double)
                else:
                    h = F.conv2d(double(h), *w.layer(f"{name}.conv", width, width, 3, 3), padding=1)
            block += 1
    h = F.silu(F.group_norm(h, GROUPS, *w.layer("out.0", widths[0])))
    out = channels * (2 if flags.learn_sigma else 1)
    return F.conv2d(h, *w.layer("out.2", out, widths[0], 3, 3), padding=1)
