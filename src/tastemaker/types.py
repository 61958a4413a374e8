"""The data that everything goes through: dataclasses of tensors.

Letters in shapes: B images, T sampler steps, W kept steps (W <= T), N rows (one image at one step), P prompts,
D the shape of one latent, L tokens, C channels of the text states. x_t is a noisy latent, x_0 a clean one, t a
timestep, lp a log-probability, w the guidance weight. `tree` has select, concat and to for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from tastemaker import noise, tree

Metrics = dict[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Cond:
    """What the network is conditioned on in each of N rows, and how strongly it is guided by it.

    Text states are stored once for each prompt: those of FLUX's T5 take 4 MB.
    """

    states: Mapping[str, Tensor] = field(metadata=tree.SHARED)
    """[P,...] tensors of the model's family by name. Row 0 of each belongs to the empty prompt. All families have
    `text` [P,L,C]; some have `pooled` [P,C] and others of their own."""
    index: Tensor
    """[N] int64: which prompt each row has; 0 is the empty one."""
    guidance: float = field(metadata=tree.SHARED)
    """w in eps_u + w (eps_c - eps_u), with eps_u of the negative prompt; 1 means no guidance and one pass."""
    negative: int = field(default=0, metadata=tree.SHARED)
    """Which prompt of the states is the negative one, that guidance moves away from; 0, the empty one, by default."""

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, name: str) -> Tensor:
        """[N,...] the states of this name, one for each row."""
        return self.states[name][self.index]

    def select(self, rows: Tensor | slice) -> Cond:
        """The same states for some of the rows."""
        return replace(self, index=self.index[rows])

    def unconditional(self) -> Cond:
        """The negative prompt for every row, without guidance."""
        return replace(self, index=torch.full_like(self.index, self.negative), guidance=1.0)

    def unguided(self) -> Cond:
        """The same prompts with a guidance weight of 1."""
        return replace(self, guidance=1.0)

    def compact(self) -> Cond:
        """The same rows, with the states of their own prompts, the empty and the negative one alone."""
        always = self.index.new_tensor([0, self.negative])
        used, index = torch.cat([always, self.index]).unique(return_inverse=True)
        states = {name: values[used] for name, values in self.states.items()}
        return Cond(states, index[2:], self.guidance, int(index[1]))

    def dropped(self, rows: Tensor) -> Cond:
        """With the empty prompt in the rows [N] bool; not the negative one, which the network was not trained on."""
        return replace(self, index=self.index.where(~rows.to(self.index.device), 0))


@dataclass(frozen=True)
class Draw:
    """Which images to sample: everything that their noise may depend on, and nothing else."""

    seed: int
    round: int
    prompts: tuple[str, ...]
    """B prompts."""
    prompt_index: tuple[int, ...]
    """B indices of the prompts in the run's list."""
    sample_index: tuple[int, ...]
    """B counts: which image of its prompt this is in the round."""
    root_index: tuple[int, ...] = ()
    """B sample indices: whose noise an image shares until it branches off. Empty where none branches."""

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: Sequence[int]) -> Draw:
        pick = lambda values: tuple(values[i] for i in indices)  # noqa: E731
        roots = pick(self.root_index) if self.root_index else ()
        return Draw(self.seed, self.round, pick(self.prompts), pick(self.prompt_index), pick(self.sample_index), roots)

    def roots(self) -> tuple[Draw, list[int]]:
        """The R different roots as images of their own, and for each of the B images which of them it has."""
        keys = list(zip(self.prompt_index, self.root_index or self.sample_index, strict=True))
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        order = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        chosen = [first[key] for key in order]
        found = self.select(chosen)
        roots = Draw(
            self.seed, self.round, found.prompts, found.prompt_index, tuple(keys[index][1] for index in chosen)
        )
        return roots, [order[key] for key in keys]

    def groups(self) -> list[int]:
        """[B] numbers of groups: images of one root where any branches, else images of one prompt."""
        keys = list(zip(self.prompt_index, self.root_index or (0,) * len(self), strict=True))
        order = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return [order[key] for key in keys]

    def noise(self, step: int, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Standard normal noise [B,*shape] of one step; step 0 is x_T, step i + 1 the noise of sampler step i."""
        keys = zip(self.prompt_index, self.sample_index, strict=True)
        rows = [noise.normal(shape, self.seed, self.round, prompt, sample, step) for prompt, sample in keys]
        return torch.stack(rows).to(device)


@dataclass(frozen=True)
class Trajectory:
    """The kept transitions of B sampled images, float32 but for the log-probabilities."""

    latents: Tensor
    """[B,W+1,*D]: x before each kept step, and x after the last one."""
    steps: Tensor = field(metadata=tree.SHARED)
    """[W] indices of the kept steps, 0 at the noise end."""
    logp: Tensor
    """[B,W] float64 log-probability of each kept transition under the policy that sampled it: mean or sum."""
    gradients: Mapping[str, Tensor] | None = None
    """[B,*shape] by the trained weights' names: the gradient of each image's log-probabilities at those weights, added
    up over the kept steps, each times its step's weight. None where they were not taken (`optimizer.single_pass`)."""


@dataclass(frozen=True)
class Rollout:
    """Images with what is needed to learn from them.

    An algorithm is given what it needs: `prompts` come without x0 and trajectory, given images (`pairs`) without
    trajectory. What is missing raises ValueError where it is asked for.
    """

    cond: Cond
    """Of the B images."""
    draw: Draw = field(metadata=tree.SHARED)
    """Which images they are; further noise may depend on it."""
    final: Tensor | None = None
    """[B,*D] final latents; None before the images are there."""
    trajectory: Trajectory | None = None
    """The kept steps; None where none were kept."""
    reward: Tensor | None = None
    """[B]"""
    advantage: Tensor | None = None
    """[B]; for regressions (RWR) the weights."""
    group: Tensor | None = None
    """[B] int64: equal for images that are compared with each other, those of one root or one prompt."""
    selected: Tensor | None = None
    """[B] bool: the images that are learned from; all where it is None."""
    label: Tensor | None = None
    """[B] of given pairs: the probability that an image is the better one; None where the first of each is."""

    def __len__(self) -> int:
        return len(self.cond)

    @property
    def x0(self) -> Tensor:
        """[B,*D] final latents. Raises ValueError before they are there."""
        return _required(self.final, "the rollout has no images yet")

    @property
    def kept(self) -> int:
        """W, the number of kept steps; 0 without a trajectory."""
        return 0 if self.trajectory is None else self.trajectory.logp.shape[1]

    @property
    def latents(self) -> Tensor:
        """[B,W+1,*D]. Raises ValueError where no steps were kept."""
        return _required(self.trajectory, _NO_STEPS).latents

    @property
    def steps(self) -> Tensor:
        """[W]. Raises ValueError where no steps were kept."""
        return _required(self.trajectory, _NO_STEPS).steps

    @property
    def logp(self) -> Tensor:
        """[B,W]. Raises ValueError where no steps were kept."""
        return _required(self.trajectory, _NO_STEPS).logp

    @property
    def device(self) -> torch.device:
        return self.cond.index.device


@dataclass(frozen=True)
class Transitions:
    """Rows of likelihood methods: one image's step from x to x_next."""

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
    cond: Cond
    """Of the N rows."""


@dataclass(frozen=True)
class Noised:
    """Rows of denoising methods: a clean latent, and the noise and time at which the network is asked about it."""

    x0: Tensor
    """[N,*D]"""
    noise: Tensor
    """[N,*D]"""
    t: Tensor
    """[N] training times."""
    weight: Tensor
    """[N]: the image's advantage, or its weight in a regression."""
    cond: Cond
    """Of the N rows."""


@dataclass(frozen=True)
class Rows:
    """Rows of a rollout by index, so that latents and text states are copied for one micro-batch at a time."""

    rollout: Rollout = field(metadata=tree.SHARED)
    image: Tensor
    """[N] which image of the rollout."""
    step_index: Tensor
    """[N] which of its kept steps, 0 to W-1; for denoising methods a count of its noises."""
    other: Tensor | None = None
    """[N] for pairs: the image that `image` is preferred to."""
    advantage: Tensor | None = None
    """[N] where each step has its own; the image's otherwise."""
    value: Tensor | None = None
    """[N] the value network's estimates before the round's first update."""
    target: Tensor | None = None
    """[N] what they should have been."""
    kl: Tensor | None = None
    """[N] divergence from the reference at sampling."""
    unit: Tensor | None = None
    """[N] what the update divided the advantages by, where it standardised or weighted them."""
    before: Tensor | None = None
    """[N,*D] the network's residuals before the round's first update, or [N] what the loss makes of them."""
    level: Tensor | None = None
    """Of the shape of `before`: its mean over all rows of the update, the same in each."""
    grad_steps: Tensor | None = None
    """[N,T] bool, the same for all rows of a draw: the sampler steps through which the reward's gradient flows."""
    epoch: Tensor | None = None
    """[N] pass over the round's rows, 0 where it is None; denoising methods draw new noise in each."""

    def __len__(self) -> int:
        return len(self.image)

    def select(self, rows: Tensor | slice) -> Rows:
        return tree.select(self, rows)

    def others(self) -> Rows:
        """The rows of the other images of the pairs. Raises ValueError where the rows are no pairs."""
        return replace(self, image=_required(self.other, "the rows are not pairs"), other=None)

    def transitions(self) -> Transitions:
        """The rows themselves. Raises ValueError before the rollout has advantages."""
        trajectory = _required(self.rollout.trajectory, _NO_STEPS)
        return Transitions(
            x=trajectory.latents[self.image, self.step_index],
            x_next=trajectory.latents[self.image, self.step_index + 1],
            step=trajectory.steps[self.step_index],
            logp=trajectory.logp[self.image, self.step_index],
            advantage=self.advantages(),
            cond=self.rollout.cond.select(self.image),
        )

    def step_noise(self) -> Tensor:
        """[N,*D] the noise that the rows' transitions were sampled with, drawn again by its counters.

        Raises ValueError where no steps were kept.
        """
        draw, shape, device = self.rollout.draw, self.rollout.latents.shape[2:], self.rollout.device
        steps = self.rollout.steps[self.step_index].tolist()
        drawn = [
            noise.normal(shape, draw.seed, draw.round, draw.prompt_index[b], draw.sample_index[b], step + 1)
            for b, step in zip(self.image.tolist(), steps, strict=True)
        ]
        return torch.stack(drawn).to(device)

    def noised(self, times: range, like: Rows | None = None) -> Noised:
        """The rows' clean latents with a time out of `times` and noise of their own, which counters settle.

        `like` are rows whose times and noise to take: both images of a pair are asked about alike.
        """
        keys = like or self
        draw, x0 = self.rollout.draw, self.rollout.x0
        drawn = []
        epochs = [0] * len(self) if self.epoch is None else self.epoch.tolist()
        for b, count, epoch in zip(keys.image.tolist(), keys.step_index.tolist(), epochs, strict=True):
            key = (draw.prompt_index[b], draw.sample_index[b])
            drawn.append(noise.diffused(x0.shape[1:], times, draw.seed, draw.round, *key, count, epoch))
        return Noised(
            x0=x0[self.image],
            noise=torch.stack([values for _, values in drawn]).to(x0.device),
            t=torch.tensor([time for time, _ in drawn], device=x0.device),
            weight=self.advantages(),
            cond=self.rollout.cond.select(self.image),
        )

    def advantages(self) -> Tensor:
        """[N], or weights. Raises ValueError before the rollout has any."""
        if self.advantage is not None:
            return self.advantage
        return _required(self.rollout.advantage, "the rollout has no advantages yet")[self.image]


_NO_STEPS = "the rollout has kept no steps"


def _required(value: T | None, lack: str) -> T:
    if value is None:
        raise ValueError(lack)
    return value


def selected_images(rollout: Rollout) -> Tensor:
    """[M] indices of the images that are learned from."""
    everything = torch.arange(len(rollout), device=rollout.device)
    return everything if rollout.selected is None else everything[rollout.selected]


def all_rows(rollout: Rollout, count: int | None = None) -> Rows:
    """Every kept step (or `count` rows) of every selected image, sample-major."""
    kept = rollout.kept if count is None else count
    chosen = selected_images(rollout)
    index = torch.arange(kept, device=chosen.device).repeat(len(chosen))
    return Rows(rollout, chosen.repeat_interleave(kept), index)
