"""Whether an algorithm keeps the contract of `algorithms.base.Algorithm`."""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tastemaker.algorithms.base import Algorithm, Task
from tastemaker.algorithms.requirements import Requirements
from tastemaker.diffusion import losses
from tastemaker.types import Rollout, Rows

NEEDS = ("prompts", "rollouts", "pairs", "samples")


def check_algorithm(algorithm: Algorithm, task: Task, rollout: Rollout) -> list[str]:
    """What an algorithm does wrong, a sentence each; nothing where it keeps the contract.

    `task` and `rollout` are of a small model with trainable weights: images that it sampled, with kept steps, rewards,
    advantages and groups for `rollouts` and `samples`; images of which the first half is preferred for `pairs`. An
    algorithm that needs `prompts` is not run here, since it samples by itself: only its fields are looked at.
    """
    kind: Any = type(algorithm)
    wrong: list[str] = []
    if not is_dataclass(algorithm) or not kind.__dataclass_params__.frozen:
        wrong.append(f"{kind.__name__} is not a frozen dataclass")
    if algorithm.needs not in NEEDS:
        return [*wrong, f"needs is {algorithm.needs!r}, but must be one of {', '.join(NEEDS)}"]
    if not isinstance(algorithm.requirements, Requirements):
        return [*wrong, f"requirements is a {type(algorithm.requirements).__name__}, but must be a Requirements"]
    if algorithm.needs == "prompts":
        return wrong
    with torch.no_grad():
        rows = algorithm.prepare(task, rollout)
    if not isinstance(rows, Rows):
        return [*wrong, f"prepare returned a {type(rows).__name__}, but must return Rows"]
    loss, metrics = algorithm.loss(task, rows)
    if loss.shape != (len(rows),):
        return [*wrong, f"loss returned shape {list(loss.shape)} for {len(rows)} rows: expected one loss for each"]
    if not loss.isfinite().all():
        wrong.append("loss is not finite")
    if not loss.requires_grad:
        return [*wrong, "loss has no gradient"]
    for name, values in metrics.items():
        if values.shape != (len(rows),) or values.requires_grad:
            wrong.append(f"the metric {name} is {list(values.shape)}: expected [{len(rows)}] without gradient")
    parameters = list(task.model.weights.trainable().values())
    whole = _gradient(loss.sum(), parameters)
    if whole.abs().max() == 0:
        wrong.append("the gradient of the trainable weights is zero")
    third = max(1, len(rows) // 3)
    parts = torch.zeros_like(whole)
    for start in range(0, len(rows), third):
        part, _ = algorithm.loss(task, rows.select(slice(start, start + third)))
        parts += _gradient(part.sum(), parameters)
    if (parts - whole).norm() > 1e-3 * whole.norm():
        wrong.append("the gradients of micro-batches do not add up to that of all rows: a loss depends on other rows")
    if algorithm.requirements.score_weight is not None:
        wrong += _score_weight(algorithm.requirements.score_weight, task, rows, whole)
    if algorithm.needs in ("rollouts", "samples"):
        nothing = replace(rollout, selected=torch.zeros(len(rollout), dtype=torch.bool, device=rollout.device))
        with torch.no_grad():
            left = len(algorithm.prepare(task, nothing))
        if left:
            wrong.append(f"prepare makes {left} rows where no image is selected")
    return wrong


def _score_weight(weight: float, task: Task, rows: Rows, gradient: Tensor) -> list[str]:
    """Whether the gradient of all rows is what `Requirements.score_weight` says. The model is the one that sampled."""
    loss = weight * losses.score_function(task.log_prob(rows.transitions()), rows.advantages())
    expected = _gradient(loss.sum(), list(task.model.weights.trainable().values()))
    if (gradient - expected).norm() > 1e-3 * expected.norm():
        return ["requirements.score_weight is not the weight of the log-probability's gradient at the sampling weights"]
    return []


def _gradient(loss: Tensor, parameters: list[Any]) -> Tensor:
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(found, parameters, strict=True)]
    ).double()
