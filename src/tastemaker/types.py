"""The data that everything goes through: dataclasses of tensors.

Letters in shapes: B images, T sampler steps, W trained steps (W <= T), N rows (one image at one step),
D the shape of one latent, L tokens, C channels of the text states. x_t is
a noisy latent, x_0 a clean one, t a timestep, lp a log-probability, w the guidance weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from tastemaker import noise

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
    """Which images to sample: everything that their noise may depend on, and nothing else."""

    seed: int
    round: int
    prompts: tuple[str, ...]
    """B prompts."""
    prompt_index: tuple[int, ...]
    """B places of the prompts in the run's list."""
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
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        order = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        chosen = [first[key] for key in order]
        found = self.select(chosen)
        roots = Draw(
            self.seed, self.round, found.prompts, found.prompt_index, tuple(keys[place][1] for place in chosen)
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
class Rollout:
    """Sampled images with what is needed to learn from them. All float32, but for the log-probabilities."""

    latents: Tensor
    """[B,W+1,*D]: x before each kept step, and x after the last one."""
    steps: Tensor
    """[W] indices of the kept steps, 0 at the noise end."""
    logp: Tensor
    """[B,W] float64 log-probability of each kept transition under the policy that sampled it: mean or sum."""
    x0: Tensor
    """[B,*D] final latents."""
    text: Tensor
    """[B,L,C] text states."""
    reward: Tensor | None = None
    """[B]"""
    advantage: Tensor | None = None
    """[B]; for regressions (RWR) the weights."""
    group: Tensor | None = None
    """[B] int64: equal for images that are compared with each other, those of one root or one prompt."""
    selected: Tensor | None = None
    """[B] bool: the images that are learned from; all where it is None."""
    draw: Draw | None = None
    """The B images' places, on which further noise may depend."""
    value_text: Tensor | None = None
    """[B,L',C] text states that the value network is given, where these are not `text`."""


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
    text: Tensor
    """[N,L,C]"""
    value_text: Tensor | None = None
    """[N,L',C] text states that the value network is given, where these are not `text`."""


@dataclass(frozen=True)
class Noised:
    """Rows of denoising methods: a clean latent, and the noise and time at which the network is asked about it."""

    x0: Tensor
    """[N,*D]"""
    noise: Tensor
    """[N,*D]"""
    t: Tensor
    """[N] int64 training times."""
    weight: Tensor
    """[N]: the image's advantage, or its weight in a regression."""
    text: Tensor
    """[N,L,C]"""


@dataclass(frozen=True)
class Rows:
    """Rows of a rollout by place, so that latents and text states are copied for one micro-batch at a time."""

    rollout: Rollout
    image: Tensor
    """[N] which image of the rollout."""
    place: Tensor
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
    """[N] what the update divided the advantages by, where it standardised them."""
    before: Tensor | None = None
    """[N,*D] the network's residuals before the round's first update."""
    grad_steps: Tensor | None = None
    """[N,T] bool, the same for all rows of a draw: the sampler steps through which the reward's gradient flows."""
    epoch: Tensor | int = 0
    """[N], or one number for all of them: pass over the round's rows; denoising methods draw new noise in each."""

    def __len__(self) -> int:
        return len(self.image)

    def select(self, rows: Tensor | slice) -> Rows:
        names = ("image", "place", "other", "advantage", "value", "target", "kl", "unit", "before", "grad_steps")
        values = {name: getattr(self, name) for name in names}
        chosen: dict[str, Any] = {name: None if v is None else v[rows] for name, v in values.items()}
        epoch = self.epoch[rows] if isinstance(self.epoch, Tensor) else self.epoch
        return Rows(self.rollout, epoch=epoch, **chosen)

    def others(self) -> Rows:
        """The rows of the other images of the pairs. Raises ValueError where the rows are no pairs."""
        if self.other is None:
            raise ValueError("the rows are not pairs")
        return replace(self, image=self.other, other=None)

    def transitions(self) -> Transitions:
        """The rows themselves. Raises ValueError before the rollout has advantages."""
        return Transitions(
            x=self.rollout.latents[self.image, self.place],
            x_next=self.rollout.latents[self.image, self.place + 1],
            step=self.rollout.steps[self.place],
            logp=self.rollout.logp[self.image, self.place],
            advantage=self.advantages(),
            text=self.rollout.text[self.image],
            value_text=None if self.rollout.value_text is None else self.rollout.value_text[self.image],
        )

    def noised(self, times: range, like: Rows | None = None) -> Noised:
        """The rows' clean latents with a time out of `times` and noise of their own, which counters settle.

        `like` are rows whose times and noise to take: both images of a pair are asked about alike. Raises
        ValueError for a rollout without its draw.
        """
        keys = like or self
        draw, shape = self.rollout.draw, self.rollout.x0.shape[1:]
        if draw is None:
            raise ValueError("the rollout does not say which images it holds")
        device = self.rollout.x0.device
        drawn = []
        epochs = self.epoch.tolist() if isinstance(self.epoch, Tensor) else [self.epoch] * len(self)
        for b, place, epoch in zip(keys.image.tolist(), keys.place.tolist(), epochs, strict=True):
            key = (draw.prompt_index[b], draw.sample_index[b])
            drawn.append(noise.diffused(shape, times, draw.seed, draw.round, *key, place, epoch))
        return Noised(
            x0=self.rollout.x0[self.image],
            noise=torch.stack([values for _, values in drawn]).to(device),
            t=torch.tensor([time for time, _ in drawn], device=device),
            weight=self.advantages(),
            text=self.rollout.text[self.image],
        )

    def advantages(self) -> Tensor:
        """[N], or weights. Raises ValueError before the rollout has any."""
        if self.advantage is not None:
            return self.advantage
        if self.rollout.advantage is None:
            raise ValueError("the rollout has no advantages yet")
        return self.rollout.advantage[self.image]


def selected_images(rollout: Rollout) -> Tensor:
    """[M] places of the images that are learned from."""
    everything = torch.arange(len(rollout.x0), device=rollout.x0.device)
    return everything if rollout.selected is None else everything[rollout.selected]


def all_rows(rollout: Rollout, places: int | None = None) -> Rows:
    """Every kept step (or `places` of them) of every selected image, sample-major."""
    kept = rollout.logp.shape[1] if places is None else places
    chosen = selected_images(rollout)
    place = torch.arange(kept, device=chosen.device).repeat(len(chosen))
    return Rows(rollout, chosen.repeat_interleave(kept), place)


def concat(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts of the same steps joined along B."""
    joined: dict[str, Any] = {}
    for field in fields(Rollout):
        values = [getattr(part, field.name) for part in parts]
        shared = field.name in ("steps", "draw") or values[0] is None
        joined[field.name] = values[0] if shared else torch.cat(values)
    return Rollout(**joined)
