"""The update of a round whose gradients were taken while it was sampled (`optimizer.single_pass`)."""

from __future__ import annotations

import torch
from torch import Tensor

from tastemaker.diffusion.losses import score_function
from tastemaker.diffusion.single_pass import weighted_sum
from tastemaker.training.prior_preservation import add_prior_loss
from tastemaker.training.session import Session
from tastemaker.training.update import MetricAccumulator, average_gradients, check_finite, clip, set_rate, take_step
from tastemaker.types import Rows


def single_pass_update(session: Session, rows: Rows, selected: Tensor) -> dict[str, float]:
    """The optimizer step of a round, from the gradients in this process' rollout. Returns means of the metrics, and the
    learning rate.

    `rows` are those of the images that are learned from, and `selected` [B] bool says which of the round's they are;
    without any there is no step. The loss that is recorded is the score function's. Raises DivergedError before a loss
    or gradient that is not finite reaches the weights.
    """
    accelerator, rollout, accumulator = session.accelerator, rows.rollout, MetricAccumulator()
    total, weight = int(selected.sum()) * rollout.kept, session.config.algorithm.requirements.score_weight
    if not total:
        return accumulator.means(accelerator)
    trajectory = rollout.trajectory
    if weight is None or trajectory is None or trajectory.gradients is None or rollout.advantage is None:
        raise ValueError("the rollout has no gradients and advantages, or the algorithm cannot be trained by them")
    set_rate(session, 0)
    loss = weight * score_function(trajectory.logp[rows.image, rows.step_index], rows.advantages())
    if session.step_weights is not None:
        loss = loss * session.step_weights.to(loss.device)[rollout.steps[rows.step_index]]
    accumulator.add(loss, {})
    sums = loss.sum()
    if session.prior_images is not None:
        prior_loss = add_prior_loss(session, session.prior_images, 0)
        accumulator.prior_losses.append(prior_loss)
        sums = sums + prior_loss
    chosen = torch.zeros_like(rollout.advantage).index_fill_(0, rows.image, 1.0)
    # As wrappers do: gradients are averaged over processes, and times their number that is a mean over all rows.
    weights = -weight * accelerator.num_processes / total * rollout.advantage * chosen
    parameters = session.model.weights.trainable()
    for name, gradient in weighted_sum(trajectory.gradients, weights).items():
        before = parameters[name].grad
        parameters[name].grad = gradient if before is None else before + gradient
    average_gradients(accelerator, list(parameters.values()))
    norm = clip(session, session.model.network, session.config.optimizer.clip_norm)
    check_finite(session, sums, [norm])
    accumulator.norms.append(norm)
    take_step(session)
    return accumulator.means(accelerator) | {"lr": session.optimizer.param_groups[0]["lr"]}
