"""Mixtures of low-rank adapters (AlignProp §5.4): pure functions of their factors. Letters: docs/guides/mixing.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import copysign, sqrt
from typing import Literal

import torch
from torch import Tensor

from tastemaker.errors import ModelError

Mode = Literal["factor", "delta"]


@dataclass(frozen=True)
class Factors:
    """What one layer's adapter adds to its weight: scale B A. Convolutions have A [r,in,k,k] and B [out,r,1,1]."""

    a: Tensor
    """[r,in] peft's lora_A, diffusers' lora.down."""
    b: Tensor
    """[out,r] peft's lora_B, diffusers' lora.up."""
    scale: float
    """lora_alpha / r."""

    @property
    def rank(self) -> int:
        return self.a.shape[0]


Adapter = dict[str, Factors]
"""Factors by the name of their layer."""


def mix(adapters: Sequence[Adapter], weights: Sequence[float], mode: Mode) -> Adapter:
    """The mixture of adapters of one model. With one adapter the rest is the base model's."""
    return (factor if mode == "factor" else delta)(adapters, weights)


def factor(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """A = sum_i w_i A_i and B = sum_i w_i B_i, entry by entry, as the public code of AlignProp mixes.

    What is added to a weight is s (sum_i w_i B_i) (sum_j w_j A_j), with cross terms, and w^2 s B A for one adapter.
    Where scales differ, the root of each goes into both of its factors first. Raises ModelError where ranks differ, or
    where an adapter lacks a layer that another one has.
    """
    layers = [adapter.keys() for adapter in adapters]
    lone = sorted(set().union(*layers) - set.intersection(*map(set, layers)))
    if lone:
        raise ModelError(
            f"not all of the adapters have the layer {lone[0]} ({len(lone)} such layers), but factors can only be "
            "added where all have: use --mode delta"
        )
    return {name: _factor(name, [adapter[name] for adapter in adapters], weights) for name in adapters[0]}


def _factor(name: str, parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
    ranks = [part.rank for part in parts]
    if len(set(ranks)) > 1:
        raise ModelError(
            f"the adapters have ranks {_listed(ranks)} (layer {name}), but factors can only be added where these are "
            "equal: use --mode delta"
        )
    if len({part.scale for part in parts}) > 1:
        parts = [_unscaled(part) for part in parts]
    a = _sum(weights, [part.a for part in parts])
    b = _sum(weights, [part.b for part in parts])
    return Factors(a.float(), b.float(), parts[0].scale)


def delta(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """sum_i w_i s_i B_i A_i exactly, as one product: ranks beside each other, B = [w_i s_i B_i] and A = [A_i].

    Adapters of weight 0 take no rank, and one without a layer adds nothing to it. The scale is 1.
    """
    used = [(w, adapter) for w, adapter in zip(weights, adapters, strict=True) if w != 0]
    if not used:
        used = [(0.0, adapters[0])]

    def beside(name: str) -> Factors:
        parts = [(w * adapter[name].scale, adapter[name]) for w, adapter in used if name in adapter]
        a = torch.cat([part.a.double() for _, part in parts])
        b = torch.cat([scale * part.b.double() for scale, part in parts], dim=1)
        return Factors(a.float(), b.float(), 1.0)

    return {name: beside(name) for name in dict.fromkeys(name for _, adapter in used for name in adapter)}


def compress(adapter: Adapter, rank: int) -> Adapter:
    """The closest adapter of at most this rank by every layer's Frobenius norm (Eckart and Young).

    The decomposition is of the product of the two factors' triangles, and the layer's own matrix is never made.
    """
    return {name: f if f.rank <= rank else _compressed(f, rank) for name, f in adapter.items()}


def _compressed(factors: Factors, rank: int) -> Factors:
    a, b = factors.a.double().flatten(1), factors.scale * factors.b.double().flatten(1)
    left, upper = torch.linalg.qr(b)
    right, lower = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(upper @ lower.T)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    b, a = left @ u[:, :kept] * root, (root[:, None] * vh[:kept]) @ right.T
    return Factors(
        a.reshape(kept, *factors.a.shape[1:]).float(), b.reshape(-1, kept, *factors.b.shape[2:]).float(), 1.0
    )


def product(factors: Factors) -> Tensor:
    """[out,in] what is added to a layer's weight, in float64; [out, in*k*k] of a convolution."""
    return factors.scale * factors.b.double().flatten(1) @ factors.a.double().flatten(1)


def _sum(weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([w * part.double() for w, part in zip(weights, parts, strict=True)]).sum(dim=0)


def _unscaled(factors: Factors) -> Factors:
    root = sqrt(abs(factors.scale))
    return Factors(root * factors.a.double(), copysign(root, factors.scale) * factors.b.double(), 1.0)


def _listed(values: Sequence[int]) -> str:
    return " and ".join(str(value) for value in values)
