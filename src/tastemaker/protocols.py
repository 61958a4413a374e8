"""What a noising process, a model and an algorithm have to offer. Letters in shapes: types.py."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from tastemaker.process import Grid
from tastemaker.types import Cond, Metrics, Rollout, Rows

if TYPE_CHECKING:
    from tastemaker.models.held import Held
    from tastemaker.task import Task


class Process(Protocol):
    """A noising process x_t = alpha_t x_0 + sigma_t eps, and how the network's output reads in it."""

    def grid(self, steps: int) -> Grid:
        """The times at which a run of `steps` steps asks the network."""
        ...

    def x0(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The network's output at times t as an estimate of x_0."""
        ...

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t [N] at training times t [N]."""
        ...

    def output_scale(self, t: Tensor) -> Tensor:
        """[N] by how much the network's output moves for a move of 1 in the estimate of x_0, in size."""
        ...

    @property
    def length(self) -> int:
        """Number of training times, 0 to length - 1."""
        ...


class Model(Protocol):
    """A narrow door to a text-to-image model; keep it narrow."""

    network: nn.Module
    """What is trained. The loop puts the wrapped (distributed) module here, and only it is ever called."""
    latent_shape: tuple[int, ...]
    device: torch.device
    held: Held | None
    """The reference's weights, where they are not those without adapters."""

    @property
    def scale(self) -> int:
        """Pixels to a side of one latent element."""
        ...

    @property
    def process(self) -> Process:
        """The noising process that the network was trained on."""
        ...

    def encode(self, prompts: Sequence[str], guidance: float) -> Cond:
        """Text states, cached by prompt."""
        ...

    def pooled(self, prompts: Sequence[str]) -> Tensor:
        """[B,C] one state for each prompt: the text encoder's pooled output, or what there is one of anyway."""
        ...

    def forget_prompts(self) -> None:
        """Drops the text states that `encode` has kept."""
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

    def picture_latents(self, pictures: Tensor) -> Tensor:
        """Latents [N,*D] of pictures [N,3,H,W] in [0,1], without gradient: what `decode` would show again."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside it, the model is the one that was held last, or that training started from."""
        ...


class Algorithm(Protocol):
    """A frozen dataclass of hyperparameters with `prepare` and `loss`.

    It may have more: `extras(model)`, a value network to train beside the model's, with `value_lr` and `value_warmup`;
    `pairs_up`, where the pictures of a group must be on one process; `weights = "positive"`, where it takes weights
    and not advantages; `normalise = "minibatch"`, where advantages are standardised in each update; `kl`, and
    `kl_target` for a controller of it. One that needs prompts has `steps(candidates, generator)`, the steps of a
    draw that learn, `calls(steps, whole)`, its network calls for a picture without and with a graph, and may have
    `queries`, pictures scored for each one sampled, and `images_per_draw`, images for which they are drawn together.
    """

    name: ClassVar[str]
    needs: ClassVar[Literal["prompts", "rollouts", "pairs", "samples"]]

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """Rows to learn from; no gradient."""
        ...

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """Losses [N], unreduced, and metrics [N]."""
        ...
