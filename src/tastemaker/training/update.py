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
from torch import Tensor, nn

from tastemaker.diffusion.sampler import batches
from tastemaker.errors import DivergedError
from tastemaker.spread import differ
from tastemaker.training.draws import RoundPart, assigned, planned_updates
from tastemaker.training.lr_schedule import multiple, updates_before, warmed
from tastemaker.training.prior_preservation import add_prior_loss
from tastemaker.training.session import Session
from tastemaker.tree import concat, zeros
from tastemaker.types import Rows


def update(session: Session, rows: Rows, part: RoundPart, selected: Tensor | None = None) -> dict[str, float]:
    """The optimizer steps of a round on this process' rows. Returns means of the metrics, and the last learning rate.

    `selected` [B] bool says which images of the round are learned from (all where it is None). An update for which no
    process has rows is left out. Raises DivergedError before a loss or gradient that is not finite reaches the weights.
    """
    options, accelerator = session.config.optimizer, session.accelerator
    accumulator, count = MetricAccumulator(), max(1, len(rows))
    number = torch.cat([assigned(rows, part, options, epoch, selected) for epoch in range(options.inner_epochs)])
    chosen = torch.ones(len(part.draw), dtype=torch.bool) if selected is None else selected
    planned = planned_updates(options, chosen)
    if not planned:
        return accumulator.means(accelerator)
    if session.config.sampling.recompute_log_prob:
        rows = recomputed(session, rows, number[: len(rows)])
    counts = torch.bincount(number[number >= 0], minlength=planned)
    for done, total in enumerate(tensor(accelerator.reduce(counts, "sum")).tolist()):
        if total:
            found = (number == done).nonzero().flatten()
            own = replace(rows.select(found % count), epoch=found // count)
            if session.config.algorithm.requirements.standardise_advantages:
                own = standardised(accelerator, own, total)
            if session.config.algorithm.requirements.mean_before:
                own = levelled(accelerator, own, total)
            if session.step_weights is not None:
                own = weighted(own, session.step_weights)
            set_rate(session, done)
            accumulator.norms.append(accumulate(session, own, total, accumulator, done))
            take_step(session)
    lr = {"lr": session.optimizer.param_groups[0]["lr"]} if accumulator.norms else {}
    return accumulator.means(accelerator) | lr


def take_step(session: Session) -> None:
    """One step of the optimizer with the gradients that are there, and of the average of the weights."""
    session.optimizer.step()
    session.optimizer.zero_grad()
    if session.average is not None:
        session.average.ema_update(session.config.optimizer.ema)


@torch.no_grad()
def recomputed(session: Session, rows: Rows, number: Tensor) -> Rows:
    """The rows with log-probabilities that are computed as the updates of the first pass will compute them.

    `number` [N] is the update of each row, -1 for none. A network's output depends in its last digit on the number of
    rows that are computed together, so that the sampler's log-probabilities are those of other batches.
    """
    options, trajectory = session.config.optimizer, rows.rollout.trajectory
    if trajectory is None:
        raise ValueError("the rollout has kept no steps")
    logp = trajectory.logp.clone()
    with session.inference():
        for update in range(int(number.max()) + 1 if len(number) else 0):
            own = rows.select((number == update).nonzero().flatten())
            for part in batches(len(own), options.rows):
                some = own.select(slice(part.start, part.stop))
                sides = [some] if some.other is None else [some, some.others()]
                steps = [side.transitions() for side in sides]
                found = session.task.log_prob(concat(steps))
                for side, values in zip(sides, found.chunk(len(sides)), strict=True):
                    logp[side.image, side.step_index] = values
    return replace(rows, rollout=replace(rows.rollout, trajectory=replace(trajectory, logp=logp)))


def standardised(accelerator: Accelerator, rows: Rows, total: int) -> Rows:
    """Rows whose advantages have mean 0 and deviation 1 over all processes' `total` rows of the update (CleanRL).

    Where they do not differ but for rounding they are 0, and nothing is divided (a unit of 1).
    """
    own = rows.advantages().double()
    # accelerate has no maximum over processes; one without rows takes part with what changes none.
    ends = torch.stack([own.max(), -own.min()]) if len(own) else own.new_full((2,), -math.inf)
    high, low = tensor(accelerator.gather(ends)).view(-1, 2).amax(dim=0).tolist()
    if not differ(torch.tensor([high, -low])):
        return replace(rows, advantage=torch.zeros_like(own), unit=torch.ones_like(own))
    mean = tensor(accelerator.reduce(own.sum(), "sum")) / total
    variance = tensor(accelerator.reduce((own - mean).square().sum(), "sum")) / total
    std = variance.sqrt()
    unit = std + (0.01 * std).clamp(max=1e-8)
    return replace(rows, advantage=(own - mean) / unit, unit=unit.expand(len(rows)))


def levelled(accelerator: Accelerator, rows: Rows, total: int) -> Rows:
    """Rows with the mean of `before` over all processes' `total` rows of the update. Raises ValueError where they have
    none."""
    if rows.before is None:
        raise ValueError("the rows have nothing from before the round")
    mean = tensor(accelerator.reduce(rows.before.sum(dim=0), "sum")) / total
    return replace(rows, level=mean.expand_as(rows.before))


def weighted(rows: Rows, weights: Tensor) -> Rows:
    """Rows whose advantages are multiplied by the weights [T] of their steps, which their unit follows."""
    own = weights.to(rows.image.device)[rows.rollout.steps[rows.step_index]]
    return replace(
        rows, advantage=rows.advantages() * own, unit=own.reciprocal() if rows.unit is None else rows.unit / own
    )


def set_rate(session: Session, done: int) -> None:
    """The learning rates of the next update: `done` updates of this round came before it, and all earlier rounds.

    Each group of parameters has its own rate and warm-up. The schedule is the model's, which is the first group.
    """
    count = updates_before(session) + done
    for number, (group, (rate, warmup)) in enumerate(zip(session.optimizer.param_groups, session.rates, strict=True)):
        group["lr"] = rate * (warmed(count, warmup) if number else multiple(session.config, count))


def accumulate(session: Session, rows: Rows, total: int, accumulator: MetricAccumulator, done: int) -> float:
    """Gradients of one update, in micro-batches, divided by the `total` number of all processes' rows.

    `done` updates of the round came before it. Returns the norm of the model's gradient. A process without rows takes
    part with a row that weighs nothing, since wrapped networks wait for each other.
    """
    config, accelerator = session.config, session.accelerator
    training = config.algorithm.requirements.value
    # With a batch of its own the value network has had its steps.
    value = session.task.value if training is not None and training.batch is None else None
    networks = [session.model.network, *([] if value is None else [value])]
    parts = micro_batches(rows, config.optimizer.rows)
    spare = not parts
    if spare:
        rows, parts = placeholder(rows), batches(1, 1)
    sums = torch.zeros((), device=accelerator.device)
    if session.prior_images is not None:
        prior_loss = add_prior_loss(session, session.prior_images, done)
        accumulator.prior_losses.append(prior_loss)
        sums += prior_loss
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
        accumulator.add(loss, metrics)
        session.display.advance(len(loss))
    if pathwise:
        average_gradients(accelerator, list(session.model.weights.trainable().values()))
    limit = config.optimizer.clip_norm
    limits = [limit, limit if training is None or training.clip_norm == "model" else training.clip_norm]
    norms = [clip(session, network, most) for network, most in zip(networks, limits, strict=False)]
    check_finite(session, sums, norms)
    accumulator.first = False
    return norms[0] if math.isfinite(norms[0]) else 0.0


def clip(session: Session, network: nn.Module, limit: float | None) -> float:
    """The norm of a network's gradient, which is shortened to the limit where there is one."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    norm = session.accelerator.clip_grad_norm_(parameters, math.inf if limit is None else limit)
    return 0.0 if norm is None else float(norm)


def check_finite(session: Session, loss: Tensor, norms: Sequence[float]) -> None:
    """Raises DivergedError, and drops the gradients, where the loss or a norm is not finite."""
    scaled = session.accelerator.scaler is not None  # float16 loss scaling skips a step with overflows by itself
    wrong = not math.isfinite(loss.item())
    if wrong or not (all(map(math.isfinite, norms)) or scaled):
        session.optimizer.zero_grad()
        raise DivergedError(
            f"the {'loss' if wrong else 'gradient'} of round {session.state.round + 1} is not finite; the weights were "
            f"not touched by it. Try a smaller optimizer.lr (now {session.config.optimizer.lr:g}), or precision = fp32"
        )


def micro_batches(rows: Rows, size: int) -> list[range]:
    """range(len(rows)) in pieces of at most `size`, in each of which the reward's gradient flows through one set of
    steps."""
    if rows.grad_steps is None or not len(rows):
        return batches(len(rows), size)
    changes = (rows.grad_steps[1:] != rows.grad_steps[:-1]).any(dim=1).nonzero().flatten() + 1
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
    row = zeros(rows, 1)
    return row if row.unit is None else replace(row, unit=torch.ones_like(row.unit))


class MetricAccumulator:
    """Sums of the rows' metrics, kept on the device until the round ends: no waiting for it in between."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.tops: dict[str, Tensor] = {}
        self.norms: list[float] = []
        self.prior_losses: list[Tensor] = []
        """This process' parts of the mean losses of prior preservation, one for each update."""
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
        if self.prior_losses:
            means["prior_loss"] = tensor(accelerator.reduce(sum(self.prior_losses), "sum")).item() / len(
                self.prior_losses
            )
        norm = math.fsum(self.norms) / len(self.norms)
        return {**means, **tops, "grad_norm": norm, "updates": len(self.norms), "rows": count}


def tensor(answer: Any) -> Tensor:
    """What accelerate's collectives give for a tensor, which they annotate as any nest of tensors."""
    assert isinstance(answer, Tensor)
    return answer
