"""Adapters with a copy for each image of a batch, so that one backward pass gives each image's own gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from tastemaker.errors import ModelError


@dataclass(frozen=True)
class AdapterLayer:
    """One linear or convolution layer of an adapter, without bias."""

    parent: nn.Module
    name: str
    """What the parent calls it."""
    layer: nn.Linear | nn.Conv2d


def adapter_layers(network: nn.Module) -> dict[str, AdapterLayer]:
    """The layers of a network's trained weights, by the weights' names.

    Raises ModelError where a trained weight is none of a linear or convolution layer without bias, of which an image
    can have a copy of its own.
    """
    found: dict[str, AdapterLayer] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        path, _, last = name.rpartition(".")
        layer = network.get_submodule(path)
        zeros = not isinstance(layer, nn.Conv2d) or layer.padding_mode == "zeros"
        if not isinstance(layer, (nn.Linear, nn.Conv2d)) or last != "weight" or layer.bias is not None or not zeros:
            raise ModelError(
                f"optimizer.single_pass is true, but the trained weight {name} is of a {type(layer).__name__}, and "
                "images have gradients of their own for linear and convolution layers without bias alone: set it to "
                "false"
            )
        parent, _, key = path.rpartition(".")
        found[name] = AdapterLayer(network.get_submodule(parent), key, layer)
    return found


@contextmanager
def per_image(network: nn.Module, images: int) -> Iterator[dict[str, Tensor]]:
    """Inside it each of N = `images` images has its own copy of the trained weights; yields them, [N,*shape] by name.

    They are leaves, equal for all images. The network is given k N rows: row i is one of image i modulo N, as
    classifier-free guidance asks it about both halves. A sum of the rows' outputs then has as its gradient in a copy
    that of its image's rows alone. Raises ModelError for another network than `adapter_layers` takes, and inside it
    where a layer is given another number of rows.
    """
    layers = adapter_layers(network)
    copies = {
        name: found.layer.weight.detach().expand(images, *found.layer.weight.shape).requires_grad_()
        for name, found in layers.items()
    }
    try:
        for name, found in layers.items():
            layer, weight = found.layer, copies[name]
            own = PerImageLinear(name, weight) if isinstance(layer, nn.Linear) else PerImageConv2d(name, layer, weight)
            setattr(found.parent, found.name, own)
        yield copies
    finally:
        for found in layers.values():
            setattr(found.parent, found.name, found.layer)


class PerImageLinear(nn.Module):
    """A linear layer with the weights [N,out,in] of N images."""

    def __init__(self, name: str, weight: Tensor) -> None:
        super().__init__()
        self.name, self.weight = name, weight

    def forward(self, x: Tensor) -> Tensor:
        """[k N,...,out] of [k N,...,in]"""
        require_rows(self.name, x, len(self.weight))
        rows = x.reshape(-1, len(self.weight), math.prod(x.shape[1:-1]), x.shape[-1])
        return (rows @ self.weight.mT).reshape(*x.shape[:-1], -1)


class PerImageConv2d(nn.Module):
    """A convolution with the weights [N,out,in,h,w] of N images, which are its groups."""

    def __init__(self, name: str, layer: nn.Conv2d, weight: Tensor) -> None:
        super().__init__()
        self.name, self.weight = name, weight
        self.stride, self.padding, self.dilation, self.groups = (
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )

    def forward(self, x: Tensor) -> Tensor:
        """[k N,out,H',W'] of [k N,in,H,W]"""
        images = len(self.weight)
        require_rows(self.name, x, images)
        grouped, weight = x.reshape(-1, images * x.shape[1], *x.shape[2:]), self.weight.flatten(0, 1)
        out = functional.conv2d(grouped, weight, None, self.stride, self.padding, self.dilation, images * self.groups)
        return out.reshape(len(x), self.weight.shape[1], *out.shape[2:])


def require_rows(name: str, x: Tensor, images: int) -> None:
    """Raises ModelError where the input of a layer does not have the same number of rows for each image."""
    if x.ndim < 2 or len(x) % images:
        raise ModelError(
            f"optimizer.single_pass is true, but the layer of {name} is given {list(x.shape)} for {images} images, "
            "which is not the same number of rows for each: set it to false"
        )
