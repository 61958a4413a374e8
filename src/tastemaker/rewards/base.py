"""What a reward is, and the one place where its answers are checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from tastemaker.errors import RewardError
from tastemaker.rewards.foreign import call, one_line
from tastemaker.rewards.numbers import numbers

Function = TypeVar("Function", bound=Callable[..., Tensor])


@runtime_checkable
class Reward(Protocol):
    """A plain function of images [B,3,H,W] in [0,1] and B prompts, to B finite numbers; higher is better.

    A function without marks is taken as one on images that has no gradient. One that is elsewhere may have two methods
    more: `identity()`, which reward answers, compared when a run is resumed; and `cancel()`, called from another
    thread, which ends a call that nobody waits for any longer.
    """

    def __call__(self, x: Tensor, prompts: Sequence[str]) -> Tensor: ...


@runtime_checkable
class Combined(Reward, Protocol):
    """A reward made of others, whose own rewards are of interest too."""

    def parts(self, x: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The parts' rewards [B] by name."""
        ...

    def combine(self, found: Mapping[str, Tensor]) -> Tensor:
        """The reward [B] from them."""
        ...


def reward(
    *, differentiable: bool = False, space: Literal["image", "latent"] = "image"
) -> Callable[[Function], Function]:
    """Marks a function as a reward: whether it has a gradient, and whether it wants images or latents."""

    def mark(function: Function) -> Function:
        function.differentiable = differentiable  # type: ignore[attr-defined]
        function.space = space  # type: ignore[attr-defined]
        return function

    return mark


def score(reward: Reward, x: Tensor, prompts: Sequence[str], *, copied: bool = True) -> Tensor:
    """Rewards [B] of images, float32 on the CPU, without gradient.

    Raises RewardError where the reward raises, or answers with something else than one finite number for each
    image. A failed reward is never a number. The reward is given a copy of x unless `copied` is false.
    """
    with torch.no_grad():
        return checked(reward, x, prompts, copied=copied).detach().cpu()


@dataclass(frozen=True)
class Scores:
    """Rewards of B images, and for a combination those of its parts."""

    total: Tensor
    """[B]"""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """[B] each, by name; none of a reward that is one by itself."""


def put_together(reward: Combined, parts: Mapping[str, Tensor], prompts: Sequence[str]) -> Tensor:
    """The checked rewards [B] of a combination, whose parts' are there. Raises RewardError."""
    return _finite(reward, reward.combine(parts), prompts)


def graded(reward: Reward, x: Tensor, prompts: Sequence[str]) -> Tensor:
    """Rewards [B] of images that hang on a graph, with the graph, on their device.

    Raises RewardError as `score` does, and where the answer hangs on no graph though the images do.
    """
    return graded_parts(reward, x, prompts).total


def graded_parts(reward: Reward, x: Tensor, prompts: Sequence[str]) -> Scores:
    """As `graded`, with a combination's parts. Raises RewardError where one of them hangs on no graph."""
    if not isinstance(reward, Combined):
        total = checked(reward, x, prompts)
        _require_graph(x, total, _name(reward))
        return Scores(total)
    parts = reward.parts(x, prompts)
    for name, values in parts.items():
        _require_graph(x, values, name)
    return Scores(put_together(reward, parts, prompts), parts)


def _require_graph(x: Tensor, answer: Tensor, name: str) -> None:
    if x.requires_grad and not answer.requires_grad:
        raise RewardError(
            f"the reward {name} says that it is differentiable, but its answer has no gradient: take "
            "out what leaves torch (.detach(), .numpy(), PIL), or do not mark it as differentiable"
        )


def checked(reward: Reward, x: Tensor, prompts: Sequence[str], *, copied: bool = True) -> Tensor:
    """A reward's answer as a tensor [B] of finite float32 numbers, where and with what graph it makes them.

    The answer is a copy of its own, and so is what the reward is given (unless `copied` is false): what it does to
    either, now or later, changes nothing of the run's. Raises RewardError where the reward raises or answers with
    something else.
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        return _answer(reward, x.clone() if copied else x, prompts)
    leaf = x.detach().requires_grad_()
    answer = _answer(reward, leaf.clone(), prompts)
    return _Graph.apply(x, (leaf, answer), _name(reward)) if answer.requires_grad else answer  # type: ignore[return-value]


class _Graph(torch.autograd.Function):
    """A reward's own graph inside the run's, so that what is raised on the way back through it is known as its."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inside: tuple[Tensor, Tensor], name: str) -> Tensor:
        ctx.inside, ctx.name = inside, name
        return inside[1].detach().clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        leaf, answer = ctx.inside
        back = lambda: torch.autograd.grad(answer, leaf, slopes[0])  # noqa: E731
        return call(back, f"on the way back, the reward {ctx.name}")[0], None, None


def _answer(reward: Reward, x: Tensor, prompts: Sequence[str]) -> Tensor:
    name = _name(reward)
    answer = call(lambda: reward(x, list(prompts)), f"the reward {name}")
    return call(lambda: _finite(reward, answer, prompts), f"the answer of the reward {name}").clone()


def _name(reward: Reward) -> str:
    return getattr(reward, "__name__", type(reward).__name__)


def _finite(reward: Reward, answer: object, prompts: Sequence[str]) -> Tensor:
    """The answer as a float32 tensor [B], once it is known to be finite there."""
    name = _name(reward)
    wanted = numbers(answer, name, len(prompts))
    if wanted.shape != (len(prompts),):
        raise RewardError(
            f"the reward {name} returned shape {list(wanted.shape)} for {len(prompts)} images, "
            f"but must return one number for each: shape [{len(prompts)}]"
        )
    values = wanted.float()
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        rule = "; rewards must be finite"
        if wanted[bad[0]].isfinite():
            rule = f", which float32 cannot hold: rewards must lie within ±{torch.finfo(torch.float32).max:.2g}"
        raise RewardError(
            f"the reward {name} returned {wanted[bad[0]].item()} for {len(bad)} of {len(prompts)} images "
            f"(the first has the prompt {one_line(repr(prompts[bad[0]]), 200)}){rule}"
        )
    return values
