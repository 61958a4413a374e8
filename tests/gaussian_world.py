"""Images of two numbers whose distribution is Gaussian: the best denoiser, and what training should find, are known.

Data of a prompt are N(m, S). With x_t = alpha x_0 + sigma eps the best estimate is
E[x_0|x_t] = m + K (x_t - alpha m), K = alpha S (alpha^2 S + sigma^2 I)^-1. What can be trained is a shift of the
estimate at each time, in units of what the sampler's noise there can do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tastemaker.algorithms.base import Task
from tastemaker.config.schema import Config
from tastemaker.data.prompt_set import PromptSet
from tastemaker.diffusion.process import Grid, output_scale, x0_from
from tastemaker.diffusion.sampler import LocalSampler
from tastemaker.diffusion.sde import ddim
from tastemaker.rewards.base import as_reward
from tastemaker.runs.checkpoint import State
from tastemaker.training.progress import Display
from tastemaker.training.session import Session
from tastemaker.training.signals import Stop
from tastemaker.types import Cond

MEANS = {"left": (-1.0, 0.5), "right": (1.5, 0.0), "": (0.0, 0.0)}
COVARIANCE = np.array([[1.0, 0.5], [0.5, 0.8]])
TASTE = np.array([1.0, 0.5])
"""The reward of an image x is TASTE . x."""
KEPT = {"vp": np.array([0.02, 0.15, 0.4, 0.7, 0.93, 0.995]), "flow": np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])}
"""alpha^2 of the variance-preserving process, alpha of the flow, from noise to image."""
STEPS = 5


@dataclass(frozen=True)
class WorldProcess:
    """Five times, 4 at the noise to 0 at the image, all of which the sampler visits."""

    kind: Literal["vp", "flow"]

    @property
    def alphas(self) -> Tensor:
        kept = torch.from_numpy(KEPT[self.kind])
        return kept.sqrt() if self.kind == "vp" else kept

    @property
    def sigmas(self) -> Tensor:
        return (1 - self.alphas**2).sqrt() if self.kind == "vp" else 1 - self.alphas

    def grid(self, steps: int, latent_shape: Sequence[int] = ()) -> Grid:
        assert steps == STEPS
        alpha, sigma = self.alphas, self.sigmas
        return Grid(torch.arange(STEPS - 1, -1, -1), alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.alphas[STEPS - 1 - t], self.sigmas[STEPS - 1 - t]

    def x0(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (values.unsqueeze(1) for values in self.scales(t))
        return x0_from(prediction, x, alpha, sigma, "epsilon" if self.kind == "vp" else "flow")

    def output_scale(self, t: Tensor) -> Tensor:
        return output_scale(*self.scales(t), "epsilon" if self.kind == "vp" else "flow")

    @property
    def times(self) -> range:
        return range(STEPS)


@dataclass(frozen=True)
class Closed:
    """The sampler as a linear map: x_next = (A + B K) x + B (I - alpha K) m + std (z + shift), in closed form.

    With rho = alpha sigma' / alpha' sigma (primes: where the step leads), A = sigma' rho / sigma,
    B = alpha' (1 - rho^2) and std = sigma' sqrt(1 - rho^2): DDPM's posterior, written out a second time.
    """

    alpha: np.ndarray
    gain: np.ndarray
    """[T,2,2] A + B K"""
    denoiser: np.ndarray
    """[T,2,2] K"""
    pull: np.ndarray
    """[T] B"""
    std: np.ndarray
    """[T]"""

    def mean(self, prompt: str, shift: np.ndarray) -> np.ndarray:
        """[2] mean of the images of a prompt for shifts [T,2]."""
        m, x = np.array(MEANS[prompt]), np.zeros(2)
        for i in range(STEPS):
            rest = self.pull[i] * (np.eye(2) - self.alpha[i] * self.denoiser[i]) @ m
            x = self.gain[i] @ x + rest + self.std[i] * shift[i]
        return x

    def reach(self) -> np.ndarray:
        """[T,2] by how much the reward rises for a shift of 1 at each step, which is also the noise's share in it."""
        after, rows = np.eye(2), []
        for i in reversed(range(STEPS)):
            rows.append(self.std[i] * after.T @ TASTE)
            after = after @ self.gain[i]
        return np.array(rows[::-1])

    def reward_std(self) -> float:
        """Deviation of the rewards of one prompt's images: x_T has variance 1, each step adds its own."""
        start = np.linalg.multi_dot(self.gain[::-1]).T @ TASTE
        return float(np.sqrt((start**2).sum() + (self.reach() ** 2).sum()))


def closed_form(kind: Literal["vp", "flow"]) -> Closed:
    kept = KEPT[kind]
    alpha = np.sqrt(kept) if kind == "vp" else kept
    sigma = np.sqrt(1 - kept) if kind == "vp" else 1 - kept
    denoiser, gain, pull, std = [], [], [], []
    for i in range(STEPS):
        now = alpha[i] ** 2 * COVARIANCE + sigma[i] ** 2 * np.eye(2)
        denoiser.append(alpha[i] * COVARIANCE @ np.linalg.inv(now))
        rho = alpha[i] * sigma[i + 1] / (alpha[i + 1] * sigma[i])
        pull.append(alpha[i + 1] * (1 - rho**2))
        gain.append(sigma[i + 1] * rho / sigma[i] * np.eye(2) + pull[i] * denoiser[i])
        std.append(sigma[i + 1] * np.sqrt(1 - rho**2))
    return Closed(alpha, np.array(gain), np.array(denoiser), np.array(pull), np.array(std))


class Shift(nn.Module):
    """[N,2] shifts of the estimate of x_0 at times t [N]: theta std / B, which moves the next latent by theta std."""

    def __init__(self, unit: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(STEPS, 2, dtype=torch.float64))
        self.register_buffer("unit", unit.unsqueeze(1))

    def forward(self, t: Tensor) -> Tensor:
        return (self.theta * self.unit)[STEPS - 1 - t]  # type: ignore[operator]


class Weights:
    """What `models.network_weights` is for networks."""

    def __init__(self, world: World) -> None:
        self.world = world

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.world.shift.named_parameters())

    @contextmanager
    def reference(self) -> Iterator[None]:
        self.world.trained = False
        try:
            yield
        finally:
            self.world.trained = True


class World:
    """The world as a `diffusion.model.Model`, as far as rounds use one."""

    latent_shape = (2,)
    device = torch.device("cpu")

    def __init__(self, kind: Literal["vp", "flow"]) -> None:
        self.process, self.closed = WorldProcess(kind), closed_form(kind)
        self.denoiser = torch.from_numpy(self.closed.denoiser)
        self.shift = Shift(torch.from_numpy(self.closed.std / self.closed.pull))
        self.network: nn.Module = self.shift
        self.trained = True
        self.weights = Weights(self)

    def encode(self, prompts: Sequence[str], guidance: float, *, pooled: bool = False) -> Cond:
        names = list(dict.fromkeys(["", *prompts]))
        means = torch.tensor([MEANS[name] for name in names])
        states = {"text": means.unsqueeze(1)} | ({"pooled": means} if pooled else {})
        return Cond(states, torch.tensor([names.index(prompt) for prompt in prompts]), guidance)

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        m, i = cond["text"][:, 0].double(), STEPS - 1 - t
        centred = x.double() - self.process.alphas[i].unsqueeze(1) * m
        best = m + (self.denoiser[i] @ centred.unsqueeze(2)).squeeze(2)
        return best + self.network(t) if self.trained else best

    def decode(self, x0: Tensor) -> Tensor:
        return torch.cat([x0, torch.zeros(len(x0), 1)], dim=1).reshape(-1, 3, 1, 1)

    def reward(self, prompt: str = "left") -> float:
        """The expected reward of a prompt's images as the model is now, in closed form."""
        return float(TASTE @ self.closed.mean(prompt, self.shift.theta.detach().numpy()))


def taste(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, :2, 0, 0].double() @ torch.from_numpy(TASTE)


def session(config: Config, world: World, prompts: Sequence[str], optimizer: Any, value: Any = None) -> Session:
    """A session of training/rounds.py over the world. `optimizer` is made of groups of parameters."""
    accelerator = Accelerator(cpu=True)
    options, algorithm = config.optimizer, config.algorithm
    groups, rates = [{"params": list(world.shift.parameters())}], [(options.lr, options.warmup)]
    if value is not None:
        groups.append({"params": list(value.parameters())})
        rates.append((algorithm.requirements.value.lr if algorithm.requirements.value else 0.0, 0))
    world_model: Any = world
    sde = ddim(world.process.grid(config.sampling.steps), config.sampling.eta)
    sampler = LocalSampler(world_model, sde, config.sampling.log_prob, config.sampling.noise_outside)
    training = algorithm.requirements.value
    task = Task(
        world_model, sde, config.sampling.log_prob, value, "text" if training is None else training.states,
        config.optimizer.rows,
    )  # fmt: skip
    display = Display(config.rounds, enabled=False)
    reward = as_reward(taste)
    return Session(
        config, accelerator, world_model, optimizer(groups), reward, PromptSet(tuple(prompts), (1.0,) * len(prompts)),
        task, sampler, State(), display, Stop(accelerator), config.window, rates,
    )  # fmt: skip
