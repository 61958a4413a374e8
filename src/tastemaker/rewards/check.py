"""Whether a reward keeps its contract: what `tastemaker doctor --reward NAME` runs it through."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tastemaker.errors import RewardError, RewardUnavailable
from tastemaker.rewards.base import Reward, graded, score
from tastemaker.rewards.combination import Combination, score_together

TOLERANCE = 1e-4
"""By how much a reward may differ in another batch or order, in units of the answers' size, and be called the same: a
network's sums over a larger batch may be made in another order."""


@dataclass(frozen=True)
class Finding:
    """What one part of the contract was found to be: `ok`, `failed`, or a `note` that breaks nothing."""

    state: Literal["ok", "failed", "note"]
    what: str


def images(count: int, size: int, seed: int = 0) -> Tensor:
    """[count,3,size,size] in [0,1], all different: noise, a smooth blot, stripes, nearly black, nearly white, ..."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, 3, size, size, generator=generator)
    colour = torch.rand(count, 3, 1, 1, generator=generator)
    line = torch.linspace(0, 1, size)
    blot = torch.exp(-8 * ((line[:, None] - 0.5) ** 2 + (line[None, :] - 0.4) ** 2))
    stripes = (8 * torch.pi * line).sin().mul(0.5).add(0.5).expand(size, size)
    kinds = [
        noise, blot * colour + 0.1 * noise * blot, stripes * colour + 0.2 * noise,
        0.02 * noise, 1 - 0.02 * noise, 0.8 * colour + 0.2 * noise,
    ]  # fmt: skip
    return torch.stack([kinds[place % len(kinds)][place] for place in range(count)]).clamp(0, 1)


def check_reward(reward: Reward, prompts: Sequence[str], size: int = 64, seed: int = 0) -> list[Finding]:
    """Runs a reward through its contract on one image of `size` pixels a side for each of the prompts.

    Shape and finiteness, order, independence of the batch, determinism, images left as they were, and the gradient
    where one is declared. A reward on latents is given normal noise [B,4,size/8,size/8]. Where it gives no rewards at
    all, that is the only finding. Raises RewardUnavailable for a reward elsewhere that does not answer.
    """
    space = getattr(reward, "space", "image")
    x = images(len(prompts), size, seed)
    if space == "latent":
        x = torch.randn(len(prompts), 4, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))
    given, found = x.clone(), []
    try:
        if isinstance(reward, Combination) and reward.unmeasured:
            reward.measure(score_together(reward.rewards, x.clone(), prompts))
            found.append(Finding("note", f"standardises by these {space}s here, and by the base model's in a run"))
        began = time.perf_counter()
        together = score(reward, given, prompts, copied=False)
        seconds = time.perf_counter() - began
        found += [
            Finding("ok", f"answers [{len(x)}] finite numbers for {len(x)} {space}s, {_range(together)}"),
            Finding("note", f"takes {1000 * seconds / len(x):.1f} ms for each {space} of {size} x {size} pixels"),
            *_order(reward, x, prompts, together),
            _alone(reward, x, prompts, together),
            _again(reward, x, prompts, together),
        ]
    except RewardUnavailable:
        raise
    except RewardError as error:
        return [Finding("failed", str(error))]
    if given.equal(x):
        found.append(Finding("ok", f"leaves the {space}s as they are"))
    else:
        found.append(
            Finding(
                "failed",
                f"changes the {space}s it is given: a run gives it copies, other code may not; let it copy them first",
            )
        )
    return [*found, *_gradient(reward, x, prompts)]


def _range(values: Tensor) -> str:
    return f"from {values.min().item() + 0.0:.4g} to {values.max().item() + 0.0:.4g}"  # no -0


def _asked(reward: Reward, x: Tensor, prompts: Sequence[str]) -> Tensor:
    return score(reward, x.clone(), prompts)  # it may change them


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, in units of the largest answer."""
    one, other = one.double(), other.double()
    return ((one - other).abs().max() / one.abs().max().clamp(min=torch.finfo(one.dtype).tiny)).item()


def _order(reward: Reward, x: Tensor, prompts: Sequence[str], together: Tensor) -> list[Finding]:
    if len(x) < 2 or _apart(together, together.flip(0)) <= 10 * TOLERANCE:
        return [Finding("note", "answers the same for all: whether it keeps the order cannot be seen")]
    turned = _asked(reward, x.flip(0), list(prompts)[::-1]).flip(0)
    apart = _apart(together, turned)
    if apart <= TOLERANCE:
        return [Finding("ok", f"keeps the order: turned round, answers differ by {apart:.1g} of the largest")]
    return [
        Finding(
            "failed",
            f"does not keep the order, or looks at an image's neighbours: turned round, answers differ by {apart:.1g} "
            "of the largest; each must be of its own image and prompt",
        )
    ]


def _alone(reward: Reward, x: Tensor, prompts: Sequence[str], together: Tensor) -> Finding:
    alone = torch.cat([_asked(reward, x[place : place + 1], [prompt]) for place, prompt in enumerate(prompts)])
    apart = _apart(together, alone)
    if apart == 0:
        return Finding("ok", "does not depend on the batch: alone and together, the answers are the same bits")
    if apart <= TOLERANCE:
        return Finding(
            "ok",
            f"depends on the batch in its last digits only ({apart:.1g} of the largest); on a server, give --join-ms 0 "
            "for runs that are to be repeated bit for bit",
        )
    return Finding(
        "failed",
        f"depends on the batch: alone, answers differ by {apart:.1g} of the largest; batch sizes would change a run",
    )


def _again(reward: Reward, x: Tensor, prompts: Sequence[str], together: Tensor) -> Finding:
    apart = _apart(together, _asked(reward, x, prompts))
    if apart == 0:
        return Finding("ok", "is deterministic: asked again, the answers are the same bits")
    return Finding(
        "failed",
        f"is not deterministic: asked again, answers differ by {apart:.1g} of the largest; a resumed run would not be "
        "the uninterrupted one",
    )


def _gradient(reward: Reward, x: Tensor, prompts: Sequence[str]) -> list[Finding]:
    """Of a reward that declares one: there, finite, and along itself what a finite difference says."""
    if not getattr(reward, "differentiable", False):
        return [Finding("note", "declares no gradient (see tastemaker.rewards.base.reward)")]
    leaf = x.clone().requires_grad_()
    try:
        (slope,) = torch.autograd.grad(graded(reward, leaf, prompts).sum(), leaf)
    except RewardError as error:
        return [Finding("failed", f"declares a gradient and has none: {error}")]
    if not slope.isfinite().all():
        return [Finding("failed", "declares a gradient, which is not finite")]
    norms = slope.flatten(1).norm(dim=1)
    if not (norms > 0).all():
        dead = int((norms == 0).sum())
        if getattr(reward, "may_be_flat", False):
            return [Finding("note", f"has no gradient for {dead} of {len(x)}, which a clip holds at its bound")]
        return [
            Finding("failed", f"declares a gradient, which is zero for {dead} of {len(x)}: is the way cut by detach?")
        ]
    # Along its own gradient a reward rises by the gradient's norm, over a way that is short for how it bends: its own
    # for each image, and too short for float32 where an image is at a kink.
    way = slope / norms.view(-1, *[1] * (x.dim() - 1))
    tried = []
    for step in (1e-2, 1e-3, 1e-4, 1e-5):
        rise = (_asked(reward, x + step * way, prompts) - _asked(reward, x - step * way, prompts)) / (2 * step)
        tried.append((rise - norms).abs() / norms)
    apart = torch.stack(tried).amin(dim=0)
    wrong = int((apart > 0.1).sum())
    if 2 * wrong < len(x):
        others = f" ({wrong} of {len(x)} are at a kink)" if wrong else ""
        return [
            Finding(
                "ok",
                f"has the gradient it declares: along it, answers rise as it says, to {apart[apart <= 0.1].max():.1g}"
                + others,
            )
        ]
    return [
        Finding(
            "failed",
            f"has a gradient that is not its own: for {wrong} of {len(x)}, answers do not rise along it as it says "
            f"(apart by {apart.max():.2g} of it)",
        )
    ]
