"""PPO with a value function, GAE and a divergence penalty inside the reward (thesis §5)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from tastemaker.algorithms.requirements import KlControl, Requirements, ValueTraining
from tastemaker.constraints import check_constraints
from tastemaker.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from tastemaker.algorithms.base import Task
    from tastemaker.types import Metrics, Rollout, Rows


@dataclass(frozen=True)
class PPO:
    """Proximal policy optimisation with a value network.

    Each step costs kl times its divergence from the reference, the last one earns the standardised reward
    (`advantage.normalise = base`), and generalised advantage estimation shares it out among the steps. Minibatches of
    states pooled over trajectories: `optimizer.minibatch = states`. The thesis' log-probabilities are sums over the
    elements: `sampling.log_prob = sum`, to which its clip of 0.2 belongs.
    """

    name: ClassVar[str] = "ppo"
    needs: ClassVar[Literal["rollouts"]] = "rollouts"

    clip: Annotated[float, Gt(0)] = 0.2
    """Clip range of the ratio."""
    value: Literal["unet", "cnn", "conv", "mlp"] = "unet"
    """Value network: `unet`, a copy of the U-Net's encoder and bottleneck with an attention pool; `cnn`, that of the
    thesis' experiment 1, which sees the latent alone; `conv` and `mlp`, small and new, given time and text."""
    value_from: str | None = None
    """Folder of a reward model of kind unet (`tastemaker reward train`) as which the `unet` value network begins, pool
    and all (thesis §6.9); None begins with the policy's encoder and a new pool."""
    value_clip: Annotated[float, Gt(0)] = 0.2
    """How far from its old estimate the value is trusted."""
    value_weight: Annotated[float, Gt(0)] = 0.5
    """Weight of the value loss."""
    value_lr: Annotated[float, Gt(0)] = 1e-5
    """Learning rate of the value network."""
    value_warmup: Annotated[int, Ge(0)] = 1024
    """Updates over which it rises from 0."""
    discount: Annotated[float, Ge(0), Le(1)] = 1.0
    """gamma"""
    smoothing: Annotated[float, Ge(0), Le(1)] = 0.95
    """lambda of generalised advantage estimation."""
    normalise: Literal["minibatch", "none"] = "minibatch"
    """Advantages are standardised over the rows of each update, or left as they are."""
    kl: Annotated[float, Ge(0)] = 0.02
    """Weight of the divergence in the reward, per nat (`sampling.log_prob = sum`) or per nat and element (`mean`); the
    first one where a controller moves it. 0 spares its forward passes."""
    kl_estimator: Literal["exact", "k1", "k3", "thesis"] = "exact"
    """How the divergence of a step is estimated. A reward reaches the policy only through the actions that earn it, and
    the `exact` one does not depend on its own step's: that step's gradient is taken in the loss, at one more reference
    pass. `k1` does depend on it, and has the same gradient on average. `k3` has none there, and `thesis` hardly one
    before it explodes: choose them only to measure, or to do as the thesis."""
    kl_target: float | None = None
    """Divergence of a whole trajectory, in the units of `kl`, that a controller aims for by moving the weight (Ziegler
    et al. 2019)."""
    kl_horizon: Annotated[int, Gt(0)] = 10000
    """Trajectories over which the controller works."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")
        if self.kl_target is not None and (self.kl_target <= 0 or self.kl == 0):
            raise ConfigError("algorithm.kl_target needs to be greater than 0, and algorithm.kl too, which it moves")
        if self.value_from is not None and self.value != "unet":
            raise ConfigError(
                f"algorithm.value_from is {self.value_from}, but algorithm.value is {self.value}: only a value network "
                "of kind unet can begin as a reward model"
            )

    @property
    def requirements(self) -> Requirements:
        asked, exact = self.kl > 0, self.kl_estimator == "exact"
        return Requirements(
            standardise_advantages=self.normalise == "minibatch",
            reference=asked,
            passes_before=asked * (1 + exact),
            passes_beside=int(asked and exact),
            kl=self.kl,
            kl_control=None if self.kl_target is None else KlControl(self.kl_target, self.kl_horizon),
            value=ValueTraining(self.value, self.value_lr, self.value_warmup, reward_model=self.value_from),
        )

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """One row for each selected image and each kept step, with advantage, old value and return of its own."""
        from tastemaker.algorithms import advantage
        from tastemaker.algorithms.values import estimate
        from tastemaker.types import all_rows, selected_images

        rows = all_rows(rollout)
        if rollout.advantage is None:
            raise ValueError("the rollout has no advantages yet")
        shape = (-1, rollout.kept)
        value = estimate(task, rows)
        kl = self._divergence(task, rows) if task.kl > 0 else value.new_zeros(value.shape)
        reward = -task.kl * kl.reshape(shape)
        reward[:, -1] += rollout.advantage[selected_images(rollout)]
        gained, target = advantage.gae(reward, value.reshape(shape), self.discount, self.smoothing)
        return replace(rows, advantage=gained.flatten(), value=value, target=target.flatten(), kl=kl)

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Policy and value losses [N] of N rows, unreduced, and per-row metrics [N].

        Their parameters are different ones, so that the sum's gradient is each network's own.
        """
        from tastemaker.algorithms.ratio import ratio_metrics
        from tastemaker.diffusion import losses

        if rows.value is None or rows.target is None or rows.kl is None:
            raise ValueError("rows of PPO come from its prepare")
        step = rows.transitions()
        policy = task.policy(step)
        log_ratio = policy.logp - step.logp
        surrogate = losses.clipped_surrogate(log_ratio.exp(), step.advantage, self.clip)
        if self.kl_estimator == "exact" and task.kl > 0:
            own = losses.gaussian_kl(policy.mean, task.reference(step).mean, policy.std, task.reduction)
            # In the units of the surrogate: of standardised advantages, and of a log-probability that is a mean.
            own = own / (step.x[0].numel() if task.reduction == "mean" else 1)
            surrogate = surrogate + task.kl * (own if rows.unit is None else own / rows.unit)
        value = task.estimate(step)
        error = losses.clipped_value(value, rows.value, rows.target, self.value_clip)
        return surrogate + self.value_weight * error, {
            **ratio_metrics(log_ratio, self.clip),
            "kl": rows.kl,
            "policy_loss": surrogate.detach(),
            "value_loss": error.detach(),
            "value": rows.value,
        }

    def _divergence(self, task: Task, rows: Rows) -> Tensor:
        import torch

        from tastemaker.diffusion import losses
        from tastemaker.diffusion.sampler import batches

        found = []
        for part in batches(len(rows), task.rows):
            step = rows.select(slice(part.start, part.stop)).transitions()
            reference = task.reference(step)
            with torch.no_grad():
                policy = task.policy(step) if self.kl_estimator == "exact" else reference
            kind = self.kl_estimator
            kl = losses.kl_estimate(
                kind, step.logp, reference.logp, policy.mean, reference.mean, policy.std, task.reduction
            )
            found.append(kl.to(step.logp.dtype))
        return torch.cat(found) if found else rows.rollout.logp.new_empty(0)
