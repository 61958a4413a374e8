"""The few types that everything goes through.

Letters in shapes: B pictures, T sampler steps, W trained steps (W <= T), N rows (one picture at one step),
D the shape of one latent, L tokens, C channels of the text states. x_t is
a noisy latent, x_0 a clean one, t a timestep, lp a log-probability, w the guidance weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from tastemaker import losses, noise
from tastemaker.process import Grid, transition

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Cond:
    """What the network is told about each row, and how strongly it is guided by it."""

    text: Tensor
    """[B,L,C] text states of the prompts."""
    empty: Tensor
    """[1,L,C] text states of the empty prompt, the unconditional half of guidance."""
    guidance: float
    """w in eps_u + w (eps_c - eps_u); 1 means no guidance and no second half."""

    def select(self, rows: Tensor | slice) -> Cond:
        return Cond(self.text[rows], self.empty, self.guidance)


@dataclass(frozen=True)
class Draw:
    """Which pictures to sample: everything that their noise may depend on, and nothing else."""

    seed: int
    round: int
    prompts: tuple[str, ...]
    """B prompts."""
    prompt_index: tuple[int, ...]
    """B places of the prompts in the run's list."""
    sample_index: tuple[int, ...]
    """B counts: which picture of its prompt this is in the round."""

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: Sequence[int]) -> Draw:
        pick = lambda values: tuple(values[i] for i in indices)  # noqa: E731
        return Draw(self.seed, self.round, pick(self.prompts), pick(self.prompt_index), pick(self.sample_index))

    def noise(self, step: int, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Standard normal noise [B,*shape] of one step; step 0 is x_T, step i + 1 the noise of sampler step i."""
        keys = zip(self.prompt_index, self.sample_index, strict=True)
        rows = [noise.normal(shape, self.seed, self.round, prompt, sample, step) for prompt, sample in keys]
        return torch.stack(rows).to(device)


@dataclass(frozen=True)
class Rollout:
    """Sampled pictures with what is needed to learn from them. All float32."""

    latents: Tensor
    """[B,W+1,*D]: x before each kept step, and x after the last one."""
    steps: Tensor
    """[W] indices of the kept steps, 0 at the noise end."""
    logp: Tensor
    """[B,W] mean log-probability per element of each kept transition under the policy that sampled it."""
    x0: Tensor
    """[B,*D] final latents."""
    text: Tensor
    """[B,L,C] text states."""
    reward: Tensor | None = None
    """[B]"""
    advantage: Tensor | None = None
    """[B]"""


@dataclass(frozen=True)
class Transitions:
    """Rows of likelihood methods: one picture's step from x to x_next."""

    x: Tensor
    """[N,*D]"""
    x_next: Tensor
    """[N,*D]"""
    step: Tensor
    """[N] index of the sampler step."""
    logp: Tensor
    """[N] log-probability under the policy that sampled it."""
    advantage: Tensor
    """[N]"""
    text: Tensor
    """[N,L,C]"""


@dataclass(frozen=True)
class Rows:
    """Rows of a rollout by place, so that latents and text states are copied for one micro-batch at a time."""

    rollout: Rollout
    picture: Tensor
    """[N] which picture of the rollout."""
    place: Tensor
    """[N] which of its kept steps, 0 to W-1."""

    def __len__(self) -> int:
        return len(self.picture)

    def select(self, rows: Tensor | slice) -> Rows:
        return Rows(self.rollout, self.picture[rows], self.place[rows])

    def transitions(self) -> Transitions:
        """The rows themselves. Raises ValueError before the rollout has advantages."""
        if self.rollout.advantage is None:
            raise ValueError("the rollout has no advantages yet")
        return Transitions(
            x=self.rollout.latents[self.picture, self.place],
            x_next=self.rollout.latents[self.picture, self.place + 1],
            step=self.rollout.steps[self.place],
            logp=self.rollout.logp[self.picture, self.place],
            advantage=self.rollout.advantage[self.picture],
            text=self.rollout.text[self.picture],
        )


def all_rows(rollout: Rollout) -> Rows:
    """Every kept step of every picture, sample-major: row b * W + w is picture b at its w-th kept step."""
    count, kept = rollout.logp.shape
    device = rollout.logp.device
    picture = torch.arange(count, device=device).repeat_interleave(kept)
    return Rows(rollout, picture, torch.arange(kept, device=device).repeat(count))


def concat(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts of the same steps joined along B."""
    joined: dict[str, Any] = {}
    for field in fields(Rollout):
        values = [getattr(part, field.name) for part in parts]
        shared = field.name == "steps" or values[0] is None
        joined[field.name] = values[0] if shared else torch.cat(values)
    return Rollout(**joined)


class Process(Protocol):
    """A noising process x_t = alpha_t x_0 + sigma_t eps, and how the network's output reads in it."""

    def grid(self, steps: int) -> Grid:
        """The times at which a run of `steps` steps asks the network."""
        ...

    def x0(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The network's output at times t as an estimate of x_0."""
        ...


class Model(Protocol):
    """A narrow door to a text-to-image model; keep it narrow."""

    network: nn.Module
    """What is trained. The loop puts the wrapped (distributed) module here, and only it is ever called."""
    latent_shape: tuple[int, ...]
    device: torch.device

    @property
    def process(self) -> Process:
        """The noising process that the network was trained on."""
        ...

    def encode(self, prompts: Sequence[str], guidance: float) -> Cond:
        """Text states, cached by prompt."""
        ...

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Estimate of x_0, [N,*D], guidance included; t [N] holds training times.

        In float64: near the picture a step's noise is small, and rounding the estimate to float32 would move the
        log-probability by as much as the ratio may be off before the first update.
        """
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """Pictures [N,3,H,W] in [0,1], differentiable."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside it, the model is the one that training started from."""
        ...


@dataclass(frozen=True)
class Task:
    """What an algorithm may use besides its rows."""

    model: Model
    grid: Grid
    eta: float
    empty: Tensor
    """[1,L,C] text states of the empty prompt."""
    guidance: float

    def log_prob(self, rows: Transitions) -> Tensor:
        """Mean log-probability per element [N] of the rows' transitions under the model as it is now."""
        cond = Cond(rows.text, self.empty, self.guidance)
        x0 = self.model.denoise(rows.x, self.grid.times.to(rows.step.device)[rows.step], cond)
        mean, std = transition(rows.x.to(x0.dtype), x0, self.grid, rows.step, self.eta)
        return losses.gaussian_logp(rows.x_next, mean, std)


class Algorithm(Protocol):
    """A frozen dataclass of hyperparameters with `prepare` and `loss`."""

    name: ClassVar[str]
    needs: ClassVar[Literal["prompts", "rollouts", "pairs", "samples"]]

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """Rows to learn from; no gradient."""
        ...

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N], unreduced, and metrics [N]."""
        ...
