"""SHA-256 of networks' weights, by which a model is known again whatever files or precision it was loaded from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn


def weights_digest(networks: Mapping[str, nn.Module]) -> str:
    """SHA-256 of all parameters and buffers as float32, with their names and shapes.

    Weights of half precision have the digest of the float32 weights that they are rounded from only where rounding
    changes nothing.
    """
    found = hashlib.sha256()
    for prefix, network in sorted(networks.items()):
        for name, value in sorted(network.state_dict().items()):
            found.update(f"{prefix}.{name}:{tuple(value.shape)};".encode())
            found.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return found.hexdigest()
