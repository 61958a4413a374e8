"""Mixtures of low-rank adapters (AlignProp §5.4): pure functions of their factors. Letters: docs/mixing.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import copysign, sqrt
from typing import Literal

import torch
from torch import Tensor, nn

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
    """The adapters' mixture; they must be `alike`. With one adapter the rest is the base model's."""
    return (factor if mode == "factor" else delta)(adapters, weights)


def factor(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """A = sum_i w_i A_i and B = sum_i w_i B_i, entry by entry, as the public code of AlignProp mixes.

    What is added to a weight is s (sum_i w_i B_i) (sum_j w_j A_j), with cross terms, and w^2 s B A for one adapter.
    Where scales differ, the root of each goes into both of its factors first. Raises ModelError where ranks differ.
    """
    return _by_layer(adapters, lambda name, parts: _factor(name, parts, weights))


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

    Adapters of weight 0 take no rank. The scale is 1, the rank one for all layers: smaller ones are filled with zeros.
    """
    used = [(w, adapter) for w, adapter in zip(weights, adapters, strict=True) if w != 0]
    if not used:
        used = [(0.0, adapters[0])]

    def beside(name: str, parts: Sequence[Factors]) -> Factors:
        a = torch.cat([part.a.double() for part in parts])
        b = torch.cat([w * part.scale * part.b.double() for (w, _), part in zip(used, parts, strict=True)], dim=1)
        return Factors(a.float(), b.float(), 1.0)

    return _one_rank(_by_layer([adapter for _, adapter in used], beside))


def compress(adapter: Adapter, rank: int) -> Adapter:
    """The closest adapter of this rank by every layer's Frobenius norm (Eckart and Young), of scale 1.

    The decomposition is of the product of the two factors' triangles, and the layer's own matrix is never made.
    """
    if max(factors.rank for factors in adapter.values()) <= rank:
        return adapter
    return _one_rank({name: _compressed(factors, rank) for name, factors in adapter.items()})


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
    """[out,in] what is added to a linear layer's weight, in float64."""
    return factors.scale * factors.b.double().flatten(1) @ factors.a.double().flatten(1)


def require_alike(adapters: Sequence[Adapter], names: Sequence[str]) -> None:
    """Raises ModelError where an adapter has other layers than the first, or layers of other shapes."""
    first = adapters[0]
    for other, name in zip(adapters[1:], names[1:], strict=True):
        lone = sorted(first.keys() ^ other.keys())
        if lone:
            has, lacks = (names[0], name) if lone[0] in first else (name, names[0])
            raise ModelError(
                f"{has} adapts the layer {lone[0]} and {lacks} does not ({len(lone)} such layers): "
                "only adapters of the same layers can be mixed"
            )
        for layer, factors in first.items():
            ours, theirs = _ends(factors), _ends(other[layer])
            if ours != theirs:
                raise ModelError(
                    f"{names[0]} has {_arrow(ours)} at the layer {layer} and {name} has {_arrow(theirs)}: "
                    "they are adapters of different models"
                )


def require_fits(adapter: Adapter, network: nn.Module, name: str, model: str) -> None:
    """Raises ModelError where the network lacks one of the adapter's layers, or has it in another shape."""
    modules = dict(network.named_modules())
    for layer, factors in adapter.items():
        weight = getattr(modules.get(layer), "weight", None)
        if not isinstance(weight, Tensor):
            raise ModelError(f"{name} adapts the layer {layer}, which {model} does not have: give its own --model")
        found = (weight.shape[1], weight.shape[0])
        if found != _ends(factors):
            raise ModelError(
                f"{name} has {_arrow(_ends(factors))} at the layer {layer}, but {model} has {_arrow(found)}: "
                "give the adapter's own --model"
            )


def _by_layer(adapters: Sequence[Adapter], join: Callable[[str, Sequence[Factors]], Factors]) -> Adapter:
    return {name: join(name, [adapter[name] for adapter in adapters]) for name in adapters[0]}


def _sum(weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([w * part.double() for w, part in zip(weights, parts, strict=True)]).sum(dim=0)


def _unscaled(factors: Factors) -> Factors:
    root = sqrt(abs(factors.scale))
    return Factors(root * factors.a.double(), copysign(root, factors.scale) * factors.b.double(), 1.0)


def _one_rank(adapter: Adapter) -> Adapter:
    """Every layer with the largest rank of all, which a file needs only name once."""
    rank = max(factors.rank for factors in adapter.values())

    def filled(factors: Factors) -> Factors:
        missing = rank - factors.rank
        if not missing:
            return factors
        a = torch.cat([factors.a, factors.a.new_zeros(missing, *factors.a.shape[1:])])
        b = torch.cat([factors.b, factors.b.new_zeros(len(factors.b), missing, *factors.b.shape[2:])], dim=1)
        return Factors(a, b, factors.scale)

    return {name: filled(factors) for name, factors in adapter.items()}


def _ends(factors: Factors) -> tuple[int, int]:
    """Channels that go into the layer, and out of it."""
    return factors.a.shape[1], factors.b.shape[0]


def _arrow(ends: tuple[int, int]) -> str:
    return f"{ends[0]} -> {ends[1]} channels"


def _listed(values: Sequence[int]) -> str:
    return " and ".join(str(value) for value in values)
