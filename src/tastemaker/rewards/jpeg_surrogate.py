"""The JPEG size with a gradient: a stand-in for `rewards/jpeg.py`, to be climbed (docs/guides/jpeg-surrogate.md).

The bits of baseline JPEG are counted as its entropy coder counts them, with one change: how many magnitude bits a
coefficient has is not a staircase but a smooth one. A small network corrects each block's count; it is learned from
true sizes (scripts/bundled/jpeg_surrogate.py), and bounded, so that no image can talk it into a size that the coder
would not come near to.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tastemaker.errors import ModelError, RewardError
from tastemaker.rewards.base import reward
from tastemaker.rewards.jpeg_code import (
    AC_CATEGORIES,
    COEFFICIENTS,
    DC_CATEGORIES,
    code,
    coefficients,
    luma_order,
    planes,
)

WEIGHTS = Path(__file__).parent.parent / "assets/jpeg_surrogate/jpeg_surrogate.safetensors"
WIDTH = 0.15
"""Width of a step of the staircase, in bits. A sharper one would count a little better, and be flat between steps."""
BOUND = 0.1
"""By how much of its bits a block's count may be corrected at most."""
ROUND = 0.05
"""Below which part of a quantisation step the size of a coefficient is a parabola: |u| itself has no gradient at 0."""
CHUNK = 1024
"""Blocks whose intermediate results (about 100 kB each) are held at once; others are computed again in the backward."""


def magnitude_bits(u: Tensor) -> Tensor:
    """log2(2|u| + 1) of coefficients u in quantisation steps, smooth at 0.

    Rounded down, and but for that smoothness, it is the number of bits of round(|u|): 0 to 1/2, 1 to 3/2, 2 to 7/2.
    """
    # Beyond ROUND this nears |u| fast, so that the steps stay where they are.
    return torch.log2(2 * u**2 / (u**2 + ROUND**2).sqrt() + 1)


class SizeNet(nn.Module):
    """JPEG sizes at quality 95, in kB of 1000 bytes."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.correct = nn.ModuleList(
            nn.Sequential(nn.Linear(COEFFICIENTS, hidden), nn.SiLU(), nn.Linear(hidden, 1)) for _ in range(2)
        )
        for net in self.correct:
            nn.init.zeros_(net[-1].weight)  # type: ignore[index]
            nn.init.zeros_(net[-1].bias)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        """[B] of images [B,3,H,W] in [0,1] of any size; what lies outside is clamped, as it is in a file."""
        luma, chroma = planes(x.clamp(0, 1))
        every = coefficients(luma).flatten(1, 2)
        order = luma_order(*x.shape[-2:]).to(x.device)
        parts = [(0, every[:, order])]
        parts += [(1, coefficients(plane).flatten(1, 2)) for plane in chroma.unbind(1)]
        tables = code()
        empty = (every.shape[1] - len(order)) * float(tables.dc[0, 0] + tables.end[0])
        bits = torch.stack([self.bits(part, kind).sum(1) for kind, part in parts]).sum(0)
        return (tables.header + (empty + bits) / 8) / 1000

    def bits(self, part: Tensor, kind: int) -> Tensor:
        """[B,N] bits of the blocks of a plane, from their coefficients [B,N,64] in the order of the file."""
        u = part / code().quantum[kind].to(part)
        steps = torch.cat([u[..., :1].diff(dim=1, prepend=torch.zeros_like(u[:, :1, :1])), u[..., 1:]], dim=-1)
        sizes = magnitude_bits(steps)
        pieces = sizes.flatten(0, 1).split(CHUNK)
        if len(pieces) == 1 or not torch.is_grad_enabled():
            counted = [self._block_bits(piece, kind) for piece in pieces]
        else:
            counted = [
                checkpoint(self._block_bits, piece, kind, use_reentrant=False, preserve_rng_state=False)
                for piece in pieces
            ]
        return torch.cat(counted).unflatten(0, sizes.shape[:2])  # type: ignore[arg-type]

    def _block_bits(self, sizes: Tensor, kind: int) -> Tensor:
        bits = dc_bits(sizes[:, 0], kind) + ac_bits(sizes[:, 1:], kind)
        return bits * (1 + BOUND * self.correct[kind](sizes).squeeze(-1).tanh())


def dc_bits(sizes: Tensor, kind: int) -> Tensor:
    """[N] bits of DC differences, from the smooth bits [N] of their magnitudes."""
    bits = code().dc[kind].to(sizes)
    return bits[0] + _reached(sizes, DC_CATEGORIES) @ bits.diff()


def ac_bits(sizes: Tensor, kind: int) -> Tensor:
    """[N] bits of the other coefficients of blocks, from the smooth bits [N,63] of their magnitudes, in zigzag order.

    A coefficient's code depends on the number r of zeros before it. With p the smooth indicator that a coefficient is
    not zero, r has the weight p_j prod_{j<i<k} (1 - p_i), j = k - r - 1; the block's DC coefficient counts as p = 1.
    """
    reached = _reached(sizes, AC_CATEGORIES)
    there = F.pad(reached[:, :-1, 0], (1, 0), value=1.0)
    # log(1 - p) from the logit: 1 - p itself would be 0 for a large coefficient.
    absent = F.pad(F.logsigmoid((1 - sizes) / WIDTH).cumsum(1), (1, 0))
    zeros = torch.arange(1, COEFFICIENTS)[:, None] - torch.arange(COEFFICIENTS - 1) - 1
    between = absent[:, :-1, None] - absent[:, None, :-1]
    weight = between.masked_fill((zeros < 0).to(sizes.device), -torch.inf).exp() * there[:, None]
    prices = code().ac[kind].diff(dim=-1).to(sizes)[zeros.clamp(min=0)]
    spent = (weight * torch.einsum("nkc,kjc->nkj", reached, prices)).sum(dim=(1, 2))
    return spent + (1 - reached[:, -1, 0]) * float(code().end[kind])


def _reached(sizes: Tensor, most: int) -> Tensor:
    """[...,most] smooth indicators in (0,1) that there are at least 1, 2, ... bits."""
    steps = torch.arange(1, most + 1, device=sizes.device, dtype=sizes.dtype)
    return ((sizes.unsqueeze(-1) - steps) / WIDTH).sigmoid()


@cache
def load_surrogate(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> SizeNet:
    """The network that ships with the package. Raises ModelError where the installation lacks it."""
    if not WEIGHTS.is_file():
        raise ModelError(
            f"the JPEG surrogate is missing at {WEIGHTS}: install tastemaker again, or build it with `make surrogate`"
        )
    network = SizeNet()
    network.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return network.eval().requires_grad_(False).to(device, dtype)


def predicted_kilobytes(x: Tensor) -> Tensor:
    """[B] predicted sizes of images [B,3,H,W] in [0,1] as JPEGs of quality 95, in kB of 1000 bytes; differentiable.

    Half-precision images are computed with in float32, also under autocast. Raises RewardError for another shape.
    """
    if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape[2:]:
        raise RewardError(
            f"the JPEG surrogate was given images of shape {list(x.shape)}, but it reads [B,3,H,W] in RGB: "
            "repeat a grey channel three times, and give one image as a batch of one"
        )
    x = x if x.dtype == torch.float64 else x.float()
    with torch.autocast(x.device.type, enabled=False):
        return load_surrogate(x.device, x.dtype)(x)


@reward(differentiable=True)
def jpeg_surrogate_compressibility(x: Tensor, prompts: Sequence[str]) -> Tensor:
    """Minus the predicted size of the JPEG in kB."""
    return -predicted_kilobytes(x)


@reward(differentiable=True)
def jpeg_surrogate_incompressibility(x: Tensor, prompts: Sequence[str]) -> Tensor:
    """The predicted size of the JPEG in kB."""
    return predicted_kilobytes(x)
