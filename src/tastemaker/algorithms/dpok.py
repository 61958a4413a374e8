"""DPOK: policy gradient with a divergence from the pre-trained model in the loss (Fan et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt

from tastemaker.algorithms.requirements import Requirements, ValueTraining
from tastemaker.constraints import check_constraints

if TYPE_CHECKING:
    from torch import Tensor

    from tastemaker.algorithms.base import Task
    from tastemaker.types import Metrics, Rollout, Rows


@dataclass(frozen=True)
class DPOK:
    """Diffusion policy optimisation with KL regularisation.

    reward_weight * clipped surrogate + kl * divergence from the reference. The public code clamps the ratio directly,
    which stops the gradient outside the range whatever the advantage's sign, and takes the squared difference of the
    guided noise predictions for the divergence: `clamp = direct` and `divergence = noise`. Its own value network, fed
    with the latent, the prompt and the time, gives the baseline with `value = mlp`; rewards must then not be centred by
    prompt (`advantage.normalise = base`, or none as in that code).
    """

    name: ClassVar[str] = "dpok"
    needs: ClassVar[Literal["rollouts"]] = "rollouts"

    clip: Annotated[float, Gt(0)] = 1e-4
    """Clip range of the ratio of mean (per-element) probabilities."""
    clamp: Literal["ppo", "direct"] = "ppo"
    """`ppo`: the pessimistic maximum of both. `direct`: the public code's."""
    reward_weight: Annotated[float, Gt(0)] = 10.0
    """Weight of the reward term (public code, one prompt: 10; many: 1000)."""
    kl: Annotated[float, Ge(0)] = 0.01
    """Weight of the divergence (public code, one prompt: 0.01; many: 0.1)."""
    divergence: Literal["exact", "noise"] = "exact"
    """`exact`: of the Gaussians. `noise`: mean squared difference of the noise predictions, as in the public code."""
    value: Literal["none", "mlp"] = "none"
    """`mlp`: train DPOK's value network and subtract its estimate from the reward."""
    value_lr: Annotated[float, Gt(0)] = 1e-4
    """Learning rate of the value network."""
    value_text: Literal["pooled", "mean"] = "pooled"
    """Which states of a prompt the value network is given: the pooled one (public code), or the mean of all."""
    value_batch: Annotated[int, Gt(0)] | None = None
    """States of the round in each of the value network's own steps, which come before the policy's (public code: 5
    times 256). None: it learns in the policy's updates, from their rows."""
    value_updates: Annotated[int, Gt(0)] = 1
    """With `value_batch`: the value network's own steps a round."""
    value_clip_norm: Annotated[float, Gt(0)] | None = None
    """Largest norm of the value network's gradient; none leaves it as it is (public code)."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")

    @property
    def requirements(self) -> Requirements:
        return Requirements(
            reference=self.kl > 0,
            passes_beside=int(self.kl > 0),
            kl=self.kl,
            value=None if self.value == "none" else self._value_training(self.value),
            score_weight=self.reward_weight if self.kl == 0 and self.value == "none" else None,
        )

    def _value_training(self, kind: Literal["mlp"]) -> ValueTraining:
        return ValueTraining(
            kind, self.value_lr, states="pooled" if self.value_text == "pooled" else "text", batch=self.value_batch,
            updates=self.value_updates, clip_norm=self.value_clip_norm,
        )  # fmt: skip

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """One row for each selected image and each kept step; with a value network A = r - V(x_t, c, t)."""
        from tastemaker.types import all_rows

        rows = all_rows(rollout)
        if task.value is None:
            return rows
        from tastemaker.algorithms.values import estimate

        reward = rows.advantages()
        value = estimate(task, rows)
        target = reward if self.value_batch is None else None
        return replace(rows, advantage=reward - value, value=value, target=target)

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N rows, unreduced, and per-row metrics [N]."""
        from tastemaker.algorithms.ratio import ratio_metrics
        from tastemaker.diffusion import losses

        step = rows.transitions()
        policy = task.policy(step)
        log_ratio = policy.logp - step.logp
        surrogate = losses.clipped_surrogate if self.clamp == "ppo" else losses.direct_clamp
        loss = self.reward_weight * surrogate(log_ratio.exp(), step.advantage, self.clip)
        metrics = ratio_metrics(log_ratio, self.clip)
        if self.kl > 0:
            reference = task.reference(step)
            kl = losses.gaussian_kl(policy.mean, reference.mean, policy.std, task.reduction)
            if self.divergence == "noise":
                scale = task.model.process.output_scale(task.time(step))
                penalty = losses.mean_square(policy.x0 - reference.x0) * scale.square()
            else:
                penalty = kl
            loss = loss + self.kl * penalty
            metrics["kl"] = kl.detach()
        if task.value is not None and rows.target is not None:
            error = (task.estimate(step) - rows.target).square()
            loss = loss + error
            metrics["value_loss"] = error.detach()
        return loss, metrics
