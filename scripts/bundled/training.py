"""A training that can be interrupted and gone on with: used by flow.py and pixel.py.

The learning rate is constant after a short warm-up ("train"), so that training can always be gone on with; a second
stage ("cool") starts from where the first stands, lowers the rate to zero in a straight line, and is what ships.
Every step draws from a generator seeded by the step's number, so an interrupted training makes the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WARM_UP = 100


class Training:
    """A network, its moving average and its optimizers, saved every `every` steps to `path`."""

    def __init__(
        self, path: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], decay: float, every: int
    ) -> None:
        self.path, self.network, self.optimizers, self.decay, self.every = path, network, optimizers, decay, every
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self.average = deepcopy(network).requires_grad_(False)
        self.step, self.cooled = 0, 0
        if path.exists():
            self.load(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.cooled = state["step"], state["cooled"]

    def save(self) -> None:
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "cooled": self.cooled,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)

    def run(self, loss: Callable[[int], Tensor], steps: int, until: str | None = None, cool: int = 0) -> None:
        """Trains to step `steps`, or to the time `until` (HH:MM, today); with `cool` lowers the rate over as many."""
        deadline = datetime.combine(datetime.now(), datetime.strptime(until, "%H:%M").time()) if until else None
        parameters, losses = list(self.network.parameters()), []
        wall, work = time.time(), time.process_time()
        while (self.cooled < cool if cool else self.step < steps) and not (deadline and datetime.now() > deadline):
            factor = min(1.0, (self.step + 1) / WARM_UP) * (1 - self.cooled / cool if cool else 1)
            for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            torch.manual_seed(10_000 + self.step)
            value = loss(self.step)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(value.item())
            self.step += 1
            self.cooled += bool(cool)
            decay = min(self.decay, (self.step + 1) / (self.step + 10))
            torch._foreach_lerp_(list(self.average.parameters()), parameters, 1 - decay)
            if self.step % 25 == 0:
                print(
                    f"{datetime.now():%H:%M:%S} {self.path.stem} step {self.step} loss {np.mean(losses[-25:]):.4f} "
                    f"{(time.time() - wall) / len(losses):.2f} s/step, "
                    f"{(time.process_time() - work) / len(losses):.2f} s/step of the processor",
                    flush=True,
                )
            if self.step % self.every == 0:
                self.save()
        self.save()
