"""A copy of weights that takes the place of the weights for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightCopy:
    """Copies of parameters as they were when it was made, or synchronised, on the same device: as much memory again."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.copies: dict[str, Tensor] = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def sync(self) -> None:
        """Copies the parameters anew."""
        for name, parameter in self.parameters.items():
            self.copies[name].copy_(parameter)

    @torch.no_grad()
    def ema_update(self, decay: float) -> None:
        """Moves the copies towards the parameters: decay * copy + (1 - decay) * parameter."""
        for name, parameter in self.parameters.items():
            self.copies[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside it the parameters have the copies' values. Storages are exchanged and nothing is computed, so that
        the parameters are the same bits afterwards, and a graph made before can still go backward."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.copies[name] = self.copies[name], parameter.data
