"""The optimizer steps of a round: micro-batches, backward passes, and the check before the weights are touched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tastemaker.algorithms.pairs import joined
from tastemaker.errors import DivergedError
from tastemaker.sample import batches
from tastemaker.training.anchor import add_anchor
from tastemaker.training.draws import assigned
from tastemaker.training.session import Session
from tastemaker.types import Draw, Rows


def update(session: Session, rows: Rows, mine: Sequence[int], draw: Draw, samples: int) -> dict[str, float]:
    """The optimizer steps of a round on this process' rows. Returns means of the metrics.

    `mine` are the round's places of this process' pictures, `draw` those pictures, `samples` all of the round. An
    update for which no process has rows is left out. Raises DivergedError before a loss or gradient that is not
    finite reaches the weights.
    """
    options, accelerator = session.config.optimizer, session.accelerator
    kept, tally, done = max(1, rows.rollout.logp.shape[1]), Tally(), 0
    if session.config.sampling.recompute_log_prob:
        rows = recomputed(session, rows, assigned(rows, mine, draw, samples, kept, options, 0))
    for epoch in range(options.inner_epochs):
        number = assigned(rows, mine, draw, samples, kept, options, epoch)
        counts = torch.stack([(number == u).sum() for u in range(options.updates)])
        totals = tensor(accelerator.reduce(counts, "sum")).tolist()
        for u, total in enumerate(totals):
            if total:
                chosen = replace(rows.select((number == u).nonzero().flatten()), epoch=epoch)
                if getattr(session.config.algorithm, "normalise", None) == "minibatch":
                    chosen = standardised(accelerator, chosen, total)
                set_rate(session, done)
                tally.norms.append(accumulate(session, chosen, total, tally, done))
                session.optimizer.step()
                session.optimizer.zero_grad()
                if session.average is not None:
                    session.average.follow(options.ema)
            done += 1
    return tally.means(accelerator)


@torch.no_grad()
def recomputed(session: Session, rows: Rows, number: Tensor) -> Rows:
    """The rows with log-probabilities that are computed as the updates of the first pass will compute them.

    `number` [N] is the update of each row, -1 for none. A network's output depends in its last digit on the number of
    rows that are computed together, so that the sampler's log-probabilities are those of other batches.
    """
    options, logp = session.config.optimizer, rows.rollout.logp.clone()
    with session.inference():
        for update in range(options.updates):
            own = rows.select((number == update).nonzero().flatten())
            for part in batches(len(own), options.rows):
                some = own.select(slice(part.start, part.stop))
                sides = [some] if some.other is None else [some, some.others()]
                steps = [side.transitions() for side in sides]
                found = session.task.log_prob(steps[0] if len(steps) == 1 else joined(*steps))
                for side, values in zip(sides, found.chunk(len(sides)), strict=True):
                    logp[side.picture, side.place] = values
    return replace(rows, rollout=replace(rows.rollout, logp=logp))


def standardised(accelerator: Accelerator, rows: Rows, total: int) -> Rows:
    """Rows whose advantages have mean 0 and deviation 1 over all processes' `total` rows of the update (CleanRL)."""
    own = rows.advantages().double()
    mean = tensor(accelerator.reduce(own.sum(), "sum")) / total
    variance = tensor(accelerator.reduce((own - mean).square().sum(), "sum")) / total
    unit = variance.sqrt() + 1e-8
    return replace(rows, advantage=(own - mean) / unit, unit=unit.expand(len(rows)))


def set_rate(session: Session, done: int) -> None:
    """The learning rates of the next update: `done` updates of this round came before it, and all earlier rounds.

    Each group of parameters has its own rate and warm-up.
    """
    options = session.config.optimizer
    count = session.state.round * options.updates * options.inner_epochs + done
    for group, (rate, warmup) in zip(session.optimizer.param_groups, session.rates, strict=True):
        group["lr"] = rate * min(1.0, (count + 1) / (warmup + 1))


def accumulate(session: Session, rows: Rows, total: int, tally: Tally, done: int) -> float:
    """Gradients of one update, in micro-batches, divided by the `total` number of all processes' rows.

    `done` updates of the round came before it. Returns the norm of the model's gradient. A process without rows takes
    part with a row that weighs nothing, since wrapped networks wait for each other.
    """
    config, accelerator = session.config, session.accelerator
    networks = [session.model.network, *([session.task.value] if session.task.value is not None else [])]
    parts = micro_batches(rows, config.optimizer.rows)
    spare = not parts
    if spare:
        rows, parts = placeholder(rows), batches(1, 1)
    sums = torch.zeros((), device=accelerator.device)
    if session.anchor is not None:
        anchored = add_anchor(session, session.anchor, done)
        tally.anchored.append(anchored)
        sums += anchored
    pathwise = config.pathwise
    for number, part in enumerate(parts):
        with ExitStack() as stack:
            if pathwise:
                # The backward pass calls the network again, which a distributed wrapper would take for a new one.
                stack.enter_context(session.inference())
            elif number < len(parts) - 1:
                for network in networks:
                    stack.enter_context(accelerator.no_sync(network))
            loss, metrics = config.algorithm.loss(session.task, rows.select(slice(part.start, part.stop)))
            # Wrappers average over processes: times their number it is a mean over all rows.
            accelerator.backward((0 if spare else 1) * loss.sum() * accelerator.num_processes / total)
        if spare:
            loss, metrics = loss[:0], {name: values[:0] for name, values in metrics.items()}
        sums += loss.detach().sum()
        tally.add(loss, metrics)
        session.display.advance(len(loss))
    if pathwise:
        average_gradients(accelerator, list(session.model.trainable().values()))
    norms = [
        accelerator.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], config.optimizer.clip_norm)
        for network in networks
    ]
    values = [float(norm) if norm is not None else 0.0 for norm in norms]
    scaled = accelerator.scaler is not None  # float16 loss scaling skips a step with overflows by itself
    if not math.isfinite(sums.item()) or not (all(map(math.isfinite, values)) or scaled):
        session.optimizer.zero_grad()
        what = "loss" if not math.isfinite(sums.item()) else "gradient"
        raise DivergedError(
            f"the {what} of round {session.state.round + 1} is not finite; the weights were not touched by it. "
            f"Try a smaller optimizer.lr (now {config.optimizer.lr:g}), or precision = fp32"
        )
    tally.first = False
    return values[0] if math.isfinite(values[0]) else 0.0


def micro_batches(rows: Rows, size: int) -> list[range]:
    """range(len(rows)) in pieces of at most `size`, in each of which the reward's gradient flows through one set of
    steps."""
    if rows.learns is None or not len(rows):
        return batches(len(rows), size)
    changes = (rows.learns[1:] != rows.learns[:-1]).any(dim=1).nonzero().flatten() + 1
    edges = [0, *changes.tolist(), len(rows)]
    return [
        range(start + part.start, start + part.stop)
        for start, end in pairwise(edges)
        for part in batches(end - start, size)
    ]


def average_gradients(accelerator: Accelerator, parameters: Sequence[Tensor]) -> None:
    """What a distributed wrapper does at the end of a backward pass."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    whole = tensor(accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean"))
    for parameter, part in zip(parameters, whole.split([g.numel() for g in gradients]), strict=True):
        parameter.grad = part.view_as(parameter)


def placeholder(rows: Rows) -> Rows:
    """One row of the same kind as `rows`, for a process that has none."""
    zero = rows.picture.new_zeros(1)
    filled = {
        name: values.new_zeros(1, *values.shape[1:])
        for name in ("advantage", "value", "target", "kl", "unit", "before", "learns")
        if (values := getattr(rows, name)) is not None
    }
    other = None if rows.other is None else zero
    return Rows(rows.rollout, zero, zero, other, epoch=rows.epoch, **filled)


class Tally:
    """Sums of the rows' metrics, kept on the device until the round ends: no waiting for it in between."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.tops: dict[str, Tensor] = {}
        self.norms: list[float] = []
        self.anchored: list[Tensor] = []
        """This process' parts of the anchor's mean losses, one for each update."""
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
                top = off.max() if len(off) else off.new_zeros(())
                self.tops[name] = torch.maximum(self.tops.get(name, off.new_zeros(())), top)

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes' rows; `ratio_deviation/first` is the largest before the first update."""
        if not self.norms:
            return {"updates": 0}
        count = tensor(accelerator.reduce(torch.tensor(self.rows, device=accelerator.device), "sum")).item()
        means = {name: tensor(accelerator.reduce(v, "sum")).item() / count for name, v in self.sums.items()}
        tops = {
            f"ratio_deviation/{name}": tensor(accelerator.gather(value.reshape(1))).max().item()
            for name, value in self.tops.items()
        }
        if "ratio_deviation" in means:
            means["ratio_deviation/mean"] = means.pop("ratio_deviation")
        if self.anchored:
            means["anchor_loss"] = tensor(accelerator.reduce(sum(self.anchored), "sum")).item() / len(self.anchored)
        norm = math.fsum(self.norms) / len(self.norms)
        return {**means, **tops, "grad_norm": norm, "updates": len(self.norms), "rows": count}


def tensor(answer: Any) -> Tensor:
    """What accelerate's collectives give for a tensor, which they annotate as any nest of tensors."""
    assert isinstance(answer, Tensor)
    return answer
