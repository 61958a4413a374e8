"""What a reward is, and the one place where its answers are checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from tastemaker.errors import RewardError

Function = TypeVar("Function", bound=Callable[..., Tensor])


@runtime_checkable
class Reward(Protocol):
    """A plain function of pictures [B,3,H,W] in [0,1] and B prompts, to B finite numbers; higher is better.

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
    """Marks a function as a reward: whether it has a gradient, and whether it wants pictures or latents."""

    def mark(function: Function) -> Function:
        function.differentiable = differentiable  # type: ignore[attr-defined]
        function.space = space  # type: ignore[attr-defined]
        return function

    return mark


def score(reward: Reward, x: Tensor, prompts: Sequence[str]) -> Tensor:
    """Rewards [B] of pictures, float32 on the CPU, without gradient.

    Raises RewardError where the reward raises, or answers with something else than one finite number for each
    picture. A failed reward is never a number.
    """
    with torch.no_grad():
        return checked(reward, x, prompts).float().cpu()


@dataclass(frozen=True)
class Scores:
    """Rewards of B pictures, and for a combination those of its parts."""

    total: Tensor
    """[B]"""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """[B] each, by name; none of a reward that is one by itself."""


def put_together(reward: Combined, parts: Mapping[str, Tensor], prompts: Sequence[str]) -> Tensor:
    """The checked rewards [B] of a combination, whose parts' are there. Raises RewardError."""
    return _finite(reward, reward.combine(parts), prompts)


def graded(reward: Reward, x: Tensor, prompts: Sequence[str]) -> Tensor:
    """Rewards [B] of pictures that hang on a graph, with the graph, on their device.

    Raises RewardError as `score` does, and where the answer hangs on no graph though the pictures do.
    """
    return graded_parts(reward, x, prompts).total


def graded_parts(reward: Reward, x: Tensor, prompts: Sequence[str]) -> Scores:
    """As `graded`, with a combination's parts. Raises RewardError where one of them hangs on no graph."""
    if not isinstance(reward, Combined):
        return Scores(_graph(reward, x, checked(reward, x, prompts)))
    parts = reward.parts(x, prompts)
    for name, values in parts.items():
        _graph(reward, x, values, name)
    return Scores(put_together(reward, parts, prompts), parts)


def _graph(reward: Reward, x: Tensor, answer: Tensor, name: str = "") -> Tensor:
    if x.requires_grad and not answer.requires_grad:
        raise RewardError(
            f"the reward {name or _name(reward)} says that it is differentiable, but its answer has no gradient: take "
            "out what leaves torch (.detach(), .numpy(), PIL), or do not mark it as differentiable"
        )
    return answer


def checked(reward: Reward, x: Tensor, prompts: Sequence[str]) -> Tensor:
    """A reward's answer as a tensor [B] of finite numbers, where and with what graph it makes them.

    Raises RewardError where the reward raises or answers with something else.
    """
    return _finite(reward, _asked(reward, x, prompts), prompts)


def _name(reward: Reward) -> str:
    return getattr(reward, "__name__", type(reward).__name__)


def _asked(reward: Reward, x: Tensor, prompts: Sequence[str]) -> object:
    try:
        return reward(x, list(prompts))
    except RewardError:
        raise
    except Exception as error:  # a user's own code may raise anything
        reason = " ".join(str(error).split())
        raise RewardError(f"the reward {_name(reward)} raised {type(error).__name__}: {reason}") from error


def _finite(reward: Reward, answer: object, prompts: Sequence[str]) -> Tensor:
    """The answer as a tensor [B], once it is known to be finite."""
    name = _name(reward)
    try:
        values = answer if isinstance(answer, Tensor) else torch.as_tensor(answer, dtype=torch.float32)
        values = values if values.is_floating_point() else values.float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(
            f"the reward {name} returned {type(answer).__name__}, but must return {len(prompts)} numbers"
        ) from error
    if values.shape != (len(prompts),):
        raise RewardError(
            f"the reward {name} returned shape {list(values.shape)} for {len(prompts)} pictures, "
            f"but must return one number for each: shape [{len(prompts)}]"
        )
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise RewardError(
            f"the reward {name} returned {values[bad[0]].item()} for {len(bad)} of {len(prompts)} pictures "
            f"(the first has the prompt {prompts[bad[0]]!r}); rewards must be finite"
        )
    return values
