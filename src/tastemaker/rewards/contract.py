"""What a reward is, and the one place where its answers are checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    name = getattr(reward, "__name__", type(reward).__name__)
    try:
        with torch.no_grad():
            answer = reward(x, list(prompts))
    except RewardError:
        raise
    except Exception as error:  # a user's own code may raise anything
        reason = " ".join(str(error).split())
        raise RewardError(f"the reward {name} raised {type(error).__name__}: {reason}") from error
    try:
        values = torch.as_tensor(answer, dtype=torch.float32).detach().cpu()
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
