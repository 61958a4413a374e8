"""The optimizer steps of a round: micro-batches, backward passes, and the check before the weights are touched."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tastemaker.errors import DivergedError
from tastemaker.sample import batches
from tastemaker.training.draws import update_rows
from tastemaker.training.session import Session
from tastemaker.types import Draw, Rows


def update(session: Session, rows: Rows, draw: Draw, kept: int) -> dict[str, float]:
    """The optimizer steps of a round on this process' rows (update-major). Returns means of the metrics.

    Raises DivergedError before a loss or gradient that is not finite reaches the weights.
    """
    options = session.config.optimizer
    size = len(draw) // options.updates
    tally = Tally()
    for _ in range(options.inner_epochs):
        for number in range(options.updates):
            pictures = range(number * size, (number + 1) * size)
            chosen = update_rows(rows, pictures, kept, draw, options.timestep_fraction)
            norm = accumulate(session, chosen, tally)
            set_rate(session, len(tally.norms))
            session.optimizer.step()
            session.optimizer.zero_grad()
            tally.norms.append(norm)
    return tally.means(session.accelerator)


def set_rate(session: Session, done: int) -> None:
    """The learning rate of the next update: `done` updates of this round came before it, and all earlier rounds."""
    options = session.config.optimizer
    count = session.state.round * options.updates * options.inner_epochs + done
    rate = options.lr * min(1.0, (count + 1) / (options.warmup + 1))
    for group in session.optimizer.param_groups:
        group["lr"] = rate


def accumulate(session: Session, rows: Rows, tally: Tally) -> float:
    """Gradients of one update, in micro-batches, divided by the global number of rows; returns their norm."""
    config, accelerator, network = session.config, session.accelerator, session.model.network
    parts = batches(len(rows), config.optimizer.rows)
    total = torch.zeros((), device=accelerator.device)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with nullcontext() if last else accelerator.no_sync(network):
            loss, metrics = config.algorithm.loss(session.task, rows.select(slice(part.start, part.stop)))
            # Each process has the same number of rows, and wrappers average over processes: a mean over all rows.
            accelerator.backward(loss.sum() / len(rows))
        total += loss.detach().sum()
        tally.add(loss, metrics)
        session.display.advance(len(part))
    norm = accelerator.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], config.optimizer.clip_norm)
    value = float(norm) if norm is not None else 0.0
    scaled = accelerator.scaler is not None  # float16 loss scaling skips a step with overflows by itself
    if not math.isfinite(total.item()) or not (math.isfinite(value) or scaled):
        session.optimizer.zero_grad()
        what = "loss" if not math.isfinite(total.item()) else "gradient"
        raise DivergedError(
            f"the {what} of round {session.state.round + 1} is not finite; the weights were not touched by it. "
            f"Try a smaller optimizer.lr (now {config.optimizer.lr:g}), or precision = fp32"
        )
    tally.first = False
    return value if math.isfinite(value) else 0.0


class Tally:
    """Sums of the rows' metrics, kept on the device until the round ends: no waiting for it in between."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.tops: dict[str, Tensor] = {}
        self.norms: list[float] = []
        self.rows = 0
        self.first = True

    def add(self, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """Adds the rows of one micro-batch: losses [N] and metrics [N]."""
        self.rows += len(loss)
        for name, values in (metrics | {"loss": loss.detach()}).items():
            self.sums[name] = self.sums.get(name, 0) + values.sum()  # type: ignore[assignment]
        off = metrics.get("ratio_deviation")
        if off is not None:
            for name in ("max", "first") if self.first else ("max",):
                self.tops[name] = torch.maximum(self.tops.get(name, off.new_zeros(())), off.max())

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes' rows; `ratio_deviation/first` is the largest before the first update."""
        means = {name: tensor(accelerator.reduce(v, "mean")).item() / self.rows for name, v in self.sums.items()}
        tops = {
            f"ratio_deviation/{name}": tensor(accelerator.gather(value.reshape(1))).max().item()
            for name, value in self.tops.items()
        }
        if "ratio_deviation" in means:
            means["ratio_deviation/mean"] = means.pop("ratio_deviation")
        norm = math.fsum(self.norms) / len(self.norms)
        return {**means, **tops, "grad_norm": norm}


def tensor(answer: Any) -> Tensor:
    """What accelerate's collectives give for a tensor, which they annotate as any nest of tensors."""
    assert isinstance(answer, Tensor)
    return answer
