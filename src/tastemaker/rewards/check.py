"""Whether a reward meets its contract: the checks of `tastemaker doctor --reward NAME`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tastemaker.errors import RewardError, RewardUnavailable
from tastemaker.rewards.base import (
    FunctionReward,
    Reward,
    RewardFunction,
    answer_in_place,
    as_reward,
    combined,
    functions,
    leaf_scores,
    score,
)
from tastemaker.rewards.combination import Combination, of_images

TOLERANCE = 1e-4
"""By how much a reward may differ in another batch or order, in units of the answers' size, and be called the same: a
network's sums over a larger batch may be made in another order."""


@dataclass(frozen=True)
class Finding:
    """What one part of the contract was found to be: `ok`, `failed`, or a `note` that breaks nothing."""

    state: Literal["ok", "failed", "note"]
    what: str


def images(count: int, size: int, seed: int = 0) -> Tensor:
    """[count,3,size,size] in [0,1], all different: noise, a smooth spot, stripes, nearly black, nearly white, ..."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, 3, size, size, generator=generator)
    colour = torch.rand(count, 3, 1, 1, generator=generator)
    line = torch.linspace(0, 1, size)
    spot = torch.exp(-8 * ((line[:, None] - 0.5) ** 2 + (line[None, :] - 0.4) ** 2))
    stripes = (8 * torch.pi * line).sin().mul(0.5).add(0.5).expand(size, size)
    kinds = [
        noise, spot * colour + 0.1 * noise * spot, stripes * colour + 0.2 * noise,
        0.02 * noise, 1 - 0.02 * noise, 0.8 * colour + 0.2 * noise,
    ]  # fmt: skip
    return torch.stack([kinds[index % len(kinds)][index] for index in range(count)]).clamp(0, 1)


def require_contract(
    reward: RewardFunction | Reward, prompts: Sequence[str], size: int = 64, seed: int = 0
) -> list[Finding]:
    """`check_reward` for the tests of a reward of your own, which may be a plain function; returns its findings.

    Raises RewardError, which lists what failed, where the reward breaks its contract.
    """
    findings = check_reward(as_reward(reward), prompts, size, seed)
    failed = [finding.what for finding in findings if finding.state == "failed"]
    if failed:
        raise RewardError(f"the reward {as_reward(reward).name} breaks its contract: {'; '.join(failed)}")
    return findings


def check_reward(reward: Reward, prompts: Sequence[str], size: int = 64, seed: int = 0) -> list[Finding]:
    """Runs a reward through its contract on one image of `size` pixels a side for each of the prompts.

    Shape and finiteness, order, independence of the batch, determinism, images left as they were, and the gradient
    where one is declared. A reward on latents is given normal noise, [B,4,size/8,size/8] where it does not say which
    shape it takes; a combination of rewards on both is given images alone. Where it gives no rewards at all, that is
    the only finding. Raises RewardUnavailable for a reward elsewhere that does not answer.
    """
    reward = of_images(reward) if reward.space == "mixed" else reward
    space = reward.space
    x = images(len(prompts), size, seed)
    if space == "latent":
        shapes = [leaf.latent_shape for leaf in functions({reward.name: reward}).values()]
        shape = next((shape for shape in shapes if shape is not None), (4, size // 8, size // 8))
        x = torch.randn(len(prompts), *shape, generator=torch.Generator().manual_seed(seed))
    found = []
    try:
        if isinstance(reward, Combination) and reward.unmeasured:
            reward.measure(leaf_scores({reward.name: reward}, x, prompts))
            found.append(Finding("note", f"standardises by these {space}s here, and by the base model's in a run"))
        began = time.perf_counter()
        batch = score(reward, x, prompts).total
        seconds = time.perf_counter() - began
        again, changes = _again_in_place(reward, x, prompts)
        found += [
            Finding("ok", f"answers [{len(x)}] finite numbers for {len(x)} {space}s, {_range(batch)}"),
            Finding("note", f"takes {1000 * seconds / len(x):.1f} ms for each {space} of {size} x {size} pixels"),
            *_order(reward, x, prompts, batch),
            _alone(reward, x, prompts, batch),
            _deterministic(batch, again),
        ]
    except RewardUnavailable:
        raise
    except RewardError as error:
        return [Finding("failed", str(error))]
    if changes:
        found.append(
            Finding(
                "failed",
                f"changes the {space}s it is given: a run gives it copies, other code may not; let it copy them first",
            )
        )
    else:
        found.append(Finding("ok", f"leaves the {space}s as they are"))
    return [*found, *_gradient(reward, x, prompts)]


def _range(values: Tensor) -> str:
    return f"from {values.min().item() + 0.0:.4g} to {values.max().item() + 0.0:.4g}"  # no -0


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, in units of the largest answer."""
    one, other = one.double(), other.double()
    return ((one - other).abs().max() / one.abs().max().clamp(min=torch.finfo(one.dtype).tiny)).item()


def _again_in_place(reward: Reward, x: Tensor, prompts: Sequence[str]) -> tuple[Tensor, bool]:
    """The rewards [B] of a second call, and whether a function has changed the images that it was given."""
    leaves = {reward.name: reward} if isinstance(reward, FunctionReward) else reward.parts
    given = {name: x.clone() for name in leaves}
    found = {name: answer_in_place(leaf, given[name], prompts) for name, leaf in leaves.items()}
    total = combined({reward.name: reward}, found, prompts)[reward.name].total
    return total, not all(one.equal(x) for one in given.values())


def _order(reward: Reward, x: Tensor, prompts: Sequence[str], batch: Tensor) -> list[Finding]:
    if len(x) < 2 or _difference(batch, batch.flip(0)) <= 10 * TOLERANCE:
        return [Finding("note", "answers the same for all: whether it keeps the order cannot be checked")]
    reversed_batch = score(reward, x.flip(0), list(prompts)[::-1]).total.flip(0)
    difference = _difference(batch, reversed_batch)
    if difference <= TOLERANCE:
        return [Finding("ok", f"keeps the order: in reverse, answers differ by {difference:.1g} of the largest")]
    return [
        Finding(
            "failed",
            f"does not keep the order, or looks at an image's neighbours: in reverse, answers differ by "
            f"{difference:.1g} of the largest; each must be of its own image and prompt",
        )
    ]


def _alone(reward: Reward, x: Tensor, prompts: Sequence[str], batch: Tensor) -> Finding:
    alone = torch.cat([score(reward, x[i : i + 1], [prompt]).total for i, prompt in enumerate(prompts)])
    difference = _difference(batch, alone)
    if difference == 0:
        return Finding("ok", "does not depend on the batch: alone and in a batch, the answers are bit for bit the same")
    if difference <= TOLERANCE:
        return Finding(
            "ok",
            f"depends on the batch in its last digits only ({difference:.1g} of the largest); on a server, give "
            "--join-ms 0 for runs that are to be repeated bit for bit",
        )
    return Finding(
        "failed",
        f"depends on the batch: alone, answers differ by {difference:.1g} of the largest; batch sizes would change a "
        "run",
    )


def _deterministic(batch: Tensor, again: Tensor) -> Finding:
    difference = _difference(batch, again)
    if difference == 0:
        return Finding("ok", "is deterministic: called again, the answers are bit for bit the same")
    return Finding(
        "failed",
        f"is not deterministic: called again, answers differ by {difference:.1g} of the largest; a resumed run would "
        "not be the uninterrupted one",
    )


def _gradient(reward: Reward, x: Tensor, prompts: Sequence[str]) -> list[Finding]:
    """Of a reward that declares one: there, finite, and along itself what a finite difference says."""
    if not reward.differentiable:
        return [Finding("note", "declares no gradient (see tastemaker.rewards.base.reward)")]
    leaf = x.clone().requires_grad_()
    try:
        (grad,) = torch.autograd.grad(score(reward, leaf, prompts).total.sum(), leaf)
    except RewardError as error:
        return [Finding("failed", f"declares a gradient and has none: {error}")]
    if not grad.isfinite().all():
        return [Finding("failed", "declares a gradient, which is not finite")]
    norms = grad.flatten(1).norm(dim=1)
    if not (norms > 0).all():
        zero = int((norms == 0).sum())
        if reward.may_be_flat:
            return [Finding("note", f"has no gradient for {zero} of {len(x)}, which a clip holds at its bound")]
        return [
            Finding("failed", f"declares a gradient, which is zero for {zero} of {len(x)}: is the graph cut by detach?")
        ]
    # Along its own gradient a reward rises by the gradient's norm, for a step that is short enough. How short differs
    # between images, and where an image is at a kink it would be too short for float32.
    direction = grad / norms.view(-1, *[1] * (x.dim() - 1))
    errors = []
    for step in (1e-2, 1e-3, 1e-4, 1e-5):
        ahead, behind = (score(reward, x + sign * step * direction, prompts).total for sign in (1, -1))
        rise = (ahead - behind) / (2 * step)
        errors.append((rise - norms).abs() / norms)
    error = torch.stack(errors).amin(dim=0)
    wrong = int((error > 0.1).sum())
    if 2 * wrong < len(x):
        others = f" ({wrong} of {len(x)} are at a kink)" if wrong else ""
        return [
            Finding(
                "ok",
                f"has the gradient it declares: along it, answers rise as expected, to {error[error <= 0.1].max():.1g}"
                + others,
            )
        ]
    return [
        Finding(
            "failed",
            f"has a gradient that is not its own: for {wrong} of {len(x)}, answers do not rise along it as expected "
            f"(off by {error.max():.2g} of it)",
        )
    ]
