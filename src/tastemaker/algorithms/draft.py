"""DRaFT: the reward's gradient through a fixed number of last steps (Clark et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from tastemaker.algorithms import reward_backprop
from tastemaker.algorithms.requirements import Requirements
from tastemaker.constraints import check_constraints
from tastemaker.errors import ConfigError

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor

    from tastemaker.algorithms.base import Task
    from tastemaker.types import Metrics, Rollout, Rows

_LV = 2**43
"""Step counters of the noise that finished latents are given again, apart from the sampler's and all other."""


@dataclass(frozen=True)
class DRaFT:
    """Direct reward fine-tuning: DRaFT, DRaFT-K and DRaFT-LV.

    With `noises` = 0 the gradient flows through the last `last` steps. With more the finished latent, held fixed, is
    noised that often to the last step's time, and the mean of the rewards' gradients through the network's own
    estimates of x_0 there is taken (DRaFT-LV, for a lower variance); `ordinary` adds the ordinary term to them.
    """

    name: ClassVar[str] = "draft"
    needs: ClassVar[Literal["prompts"]] = "prompts"

    last: Annotated[int, Ge(1)] | None = 1
    """K, the last trained steps; all of them for none."""
    noises: Annotated[int, Ge(0)] = 0
    """DRaFT-LV: noises for each image (the paper has 2, by two re-implementations); 0 for DRaFT-K."""
    ordinary: bool = False
    """DRaFT-LV: take the mean over the ordinary image too."""
    objective: Literal["reward", "distance", "hinge"] = "reward"
    """What is minimised: `reward`: -R. `distance`: |R - target|. `hinge`: max(0, target - R)."""
    target: float | None = None
    """Reward to be reached, for `distance` and `hinge`."""
    scale: Annotated[float, Gt(0)] = 1.0
    """Weight of the reward's loss. Adam does not see it, but the divergence's weight (`algorithm.kl`) and the limit of
    the gradient's norm (`optimizer.clip_norm`) are measured beside it."""
    kl: Annotated[float, Ge(0)] = 0.0
    """Weight of the mean square difference between the network's outputs and the reference's, at the
    trained steps."""
    checkpointing: Literal["block", "step", "edict", "none"] = "block"
    """Recomputed in the backward pass: `block`: each step, and within it each block of the network, which needs the
    least memory. `step`: each step. `edict`: images are sampled by EDICT's coupled chain, with two network calls a
    step, and its states are found again by inversion; needs `sampling.eta` = 0. `none`: nothing, so that memory grows
    with K."""
    mixing_coeff: Annotated[float, Gt(0), Le(1)] | None = None
    """`edict`: p of the mixing layers, in (0, 1]; 0.93 when left out, as in its paper. The nearer to 1, the smaller
    are the errors of the inversion, and the further apart the two latents of an image."""

    def __post_init__(self) -> None:
        check_constraints(self, "algorithm.")
        reward_backprop.check(self.objective, self.target)
        reward_backprop.edict_mixing(self.checkpointing, self.mixing_coeff)
        if self.noises and self.last != 1:
            raise ConfigError(
                f"algorithm.noises is {self.noises}, which is DRaFT-LV and learns at the last step alone: set "
                "algorithm.last to 1, or noises to 0"
            )
        if self.checkpointing == "edict" and self.noises:
            raise ConfigError(
                f"algorithm.checkpointing is edict, but algorithm.noises is {self.noises}, which is DRaFT-LV and has "
                "no chain to invert: set checkpointing to block or step, or noises to 0"
            )
        if self.ordinary and not self.noises:
            raise ConfigError("algorithm.ordinary belongs to DRaFT-LV: give algorithm.noises, or leave it out")
        if self.kl > 0 and self.noises and not self.ordinary:
            raise ConfigError(
                f"algorithm.kl is {self.kl:g}, but DRaFT-LV compares no step of the chain with the reference: leave it "
                "at 0, or take the ordinary term too (algorithm.ordinary)"
            )

    @property
    def requirements(self) -> Requirements:
        return Requirements(
            reference=self.kl > 0,
            passes_beside=int(self.kl > 0),
            kl=self.kl,
            gradient_checkpointing=self.checkpointing == "block",
            keep_graphs=self.checkpointing == "none",
            edict_mixing=reward_backprop.edict_mixing(self.checkpointing, self.mixing_coeff),
            queries=max(1, self.noises + self.ordinary),
        )

    def steps(self, candidates: Sequence[int], generator: Generator) -> list[int]:
        """The steps of an update that learn, out of the window's; at least one."""
        return reward_backprop.last(candidates, self.last)

    def calls(self, steps: Sequence[int], whole: int) -> tuple[int, int]:
        """Calls of the network for an image, without a graph and with one."""
        direct = len(steps) if not self.noises or self.ordinary else 0
        each = reward_backprop.calls_of_step(self.checkpointing)
        return each * (whole - direct), each * direct + self.noises

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """One row for each image."""
        return reward_backprop.rows(rollout)

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N] of N images, which are sampled here; unreduced, and metrics [N]."""
        import torch

        from tastemaker.diffusion.backprop import renoised

        draw, cond = reward_backprop.conditioned(rows)
        steps, recompute = reward_backprop.learning(rows), self.checkpointing != "none"
        direct = not self.noises or self.ordinary
        with torch.set_grad_enabled(direct):
            made = reward_backprop.sampled(task, rows, self.checkpointing, self.requirements.edict_mixing, self.kl > 0)
        images = [made.x0] if direct else []
        for number in range(self.noises):
            noise = draw.noise(_LV + number, made.x0.shape[1:], made.x0.device)
            images.append(
                renoised(task.model, cond, made.x0, noise, task.sde, steps[-1], len(task.sde), recompute=recompute)
            )
        rewards = torch.stack([reward_backprop.rewarded(task, rows, x0, recompute) for x0 in images])
        losses, metrics = reward_backprop.losses_of(
            rewards, self.objective, self.target, self.scale, self.kl, made.divergence
        )
        return losses.mean(dim=0), metrics
