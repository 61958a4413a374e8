"""What a reward is, and the one path on which rewards are called and their answers are checked.

A user writes a plain function. `wrap` turns it once into a `FunctionReward`, whose fields are all that other
modules look at. Rewards are then called by `score` alone, or by `score_all` for several at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field
from functools import partial
from inspect import isclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from tastemaker.errors import RewardError
from tastemaker.rewards.numbers import numbers
from tastemaker.rewards.user_code import call, one_line

if TYPE_CHECKING:
    from tastemaker.diffusion.model import Model

Space = Literal["image", "latent", "mixed"]
"""What a reward is given: images [B,3,H,W] with values in [0,1], latents [B,C,H,W], or for a combination of rewards on
both, `mixed`."""
RewardFunction = Callable[[Tensor, Sequence[str]], Any]
"""What a user writes: a function of B images (or latents) and B prompts to B finite numbers; higher is better."""
Function = TypeVar("Function", bound=RewardFunction)


def reward(*, differentiable: bool = False, space: Space = "image") -> Callable[[Function], Function]:
    """A decorator that declares whether a reward function has a gradient, and whether it takes images or latents.

    The function itself stays as it is and can be called directly.
    """

    def mark(function: Function) -> Function:
        function.differentiable = differentiable  # type: ignore[attr-defined]
        function.space = space  # type: ignore[attr-defined]
        return function

    return mark


@runtime_checkable
class Reward(Protocol):
    """A loaded reward: a single function (`FunctionReward`) or several combined (`combination.Combination`)."""

    @property
    def name(self) -> str:
        """The name used in messages."""
        ...

    @property
    def differentiable(self) -> bool:
        """Whether the answers have a gradient with respect to the images."""
        ...

    @property
    def space(self) -> Space:
        """Whether it is given images or latents, or its parts one or the other."""
        ...

    @property
    def parts(self) -> Mapping[str, FunctionReward]:
        """The rewards that a combination is made of, by name; empty for a single function."""
        ...

    @property
    def without_gradient(self) -> list[str]:
        """Names of the functions that have no gradient."""
        ...

    @property
    def may_be_flat(self) -> bool:
        """Whether a gradient of zero is expected for some images, as where a value is clipped."""
        ...

    @property
    def unmeasured(self) -> list[str]:
        """What needs statistics of the base model's images that have not been measured yet."""
        ...

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The checked rewards [B], as `score(...).total`."""
        ...

    def combine(self, found: Mapping[str, Tensor]) -> Tensor:
        """The reward [B] from its parts' rewards [B] by name; a single function's own answer, which is the only one."""
        ...

    def identity(self) -> str | None:
        """Which reward and version answers, for one that is elsewhere; compared when a run is resumed.

        Raises RewardError where it cannot be reached.
        """
        ...

    def cancel(self) -> None:
        """Ends a call that is under way in another thread, where that is possible."""
        ...


def _no_identity() -> str | None:
    return None


def _cannot_cancel() -> None:
    return None


def _any_model(model: Model) -> None:
    """For rewards that do not know whose latents they are given."""


@dataclass(frozen=True)
class FunctionReward:
    """A reward function with everything that is declared about it. Made by `wrap`."""

    function: RewardFunction
    name: str
    differentiable: bool = False
    space: Space = "image"
    identity: Callable[[], str | None] = _no_identity
    cancel: Callable[[], None] = _cannot_cancel
    concurrent: bool = False
    """Whether it waits for something elsewhere, and is called in a thread of its own while others work."""
    whole: bool = False
    """Whether it is given all images of a round or an evaluation in one call, in place of one batch after another."""
    may_be_flat: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What its answers depend on beside its name and its source code."""
    of_images: RewardFunction | None = None
    """Of a reward on latents: the same reward of images, for where there are no latents."""
    latent_shape: tuple[int, ...] | None = None
    """Of a reward on latents: the shape of one, where it takes no other."""
    require_latents: Callable[[Model], None] = _any_model
    """Of a reward on latents: raises RewardError where a model's latents are not those that it takes."""

    @property
    def parts(self) -> Mapping[str, FunctionReward]:
        """None: see `Reward`."""
        return {}

    @property
    def without_gradient(self) -> list[str]:
        """Its own name, where it has no gradient."""
        return [] if self.differentiable else [self.name]

    @property
    def unmeasured(self) -> list[str]:
        """None: see `Reward`."""
        return []

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The checked rewards [B], as `score(...).total`."""
        return score(self, images, prompts).total

    def combine(self, found: Mapping[str, Tensor]) -> Tensor:
        """Its own answer, which is the only one in `found`."""
        (answer,) = found.values()
        return answer


def as_reward(function: RewardFunction | Reward) -> Reward:
    """A user's function as a `Reward`; what is one already is returned unchanged. Raises RewardError (`wrap`)."""
    return function if isinstance(function, Reward) and not isclass(function) else wrap(function)


def wrap(function: RewardFunction, name: str | None = None) -> FunctionReward:
    """A user's function as a `FunctionReward`, with `name` (by default its own) for messages.

    Attributes of the function are read here and nowhere else: `differentiable` and `space`, as `@reward` sets them;
    `whole` (a call is given all images of a round); and of an object that calls something elsewhere, the methods
    `identity()` (which reward answers, compared when a run is resumed) and `cancel()` (called from another thread, ends
    a call under way). A function without them takes images and has no gradient. A FunctionReward is returned unchanged.

    Raises RewardError for what cannot be called, for a class, and for attributes with other values.
    """
    if isinstance(function, FunctionReward):
        return function
    own_name = getattr(function, "__name__", type(function).__name__)
    shown = repr(name or own_name)
    if isclass(function):
        raise RewardError(
            f"the reward {shown} is a class: give a function, or an object of the class, as in "
            f"`my_reward = {own_name}()`"
        )
    if not callable(function):
        raise RewardError(
            f"the reward {shown} is no function, but {type(function).__name__}: give one that takes images and prompts"
        )
    attributes = {"differentiable": False, "space": "image", "identity": None, "cancel": None, "whole": False}
    differentiable, space, identity, cancel, whole = call(
        lambda: [getattr(function, attribute, default) for attribute, default in attributes.items()],
        f"reading the attributes of the reward {shown}",
    )
    if not isinstance(differentiable, bool):
        raise RewardError(f"the reward {shown} has differentiable = {differentiable!r}, but it must be True or False")
    if space not in ("image", "latent"):
        raise RewardError(f"the reward {shown} has space = {space!r}, but it must be 'image' or 'latent'")
    if not isinstance(whole, bool):
        raise RewardError(f"the reward {shown} has whole = {whole!r}, but it must be True or False")
    return FunctionReward(
        function,
        name or own_name,
        differentiable,
        space,
        _no_identity if identity is None else partial(_as_text, identity),
        _cannot_cancel if cancel is None else cancel,
        concurrent=cancel is not None,
        whole=whole,
    )


def _as_text(identity: Callable[[], object]) -> str | None:
    found = identity()
    return None if found is None else str(found)


# ---------------------------------------------------------------- calling rewards


@dataclass(frozen=True)
class Scores:
    """The rewards of B images, and for a combination also those of its parts."""

    total: Tensor
    """[B]"""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """[B] each, by name; empty for a single function."""


def score(reward: Reward, images: Tensor, prompts: Sequence[str], latents: Tensor | None = None) -> Scores:
    """The checked rewards of B images and their prompts.

    `latents` [B,*D] of the same images are given to rewards on latents; without them, such a reward takes `images` for
    latents. Where gradients are enabled and what a reward is given requires them, the answers are float32 on its device
    and have their graph. Otherwise they are float32 on the CPU, without gradient. The reward is given copies of the
    images and prompts, and the answers are copies too, so that nothing it does to either, now or later, changes the
    caller's.

    Raises RewardError where the reward raises anything, answers with something else than one finite number for each
    image, or has no gradient where the images require one. A failed reward is never a number.
    """
    return score_all({reward.name: reward}, images, prompts, latents)[reward.name]


def score_all(
    rewards: Mapping[str, Reward], images: Tensor, prompts: Sequence[str], latents: Tensor | None = None
) -> dict[str, Scores]:
    """As `score` for several rewards by name. A function that is part of several of them is called once."""
    return combined(rewards, leaf_scores(rewards, images, prompts, latents), prompts)


def functions(rewards: Mapping[str, Reward]) -> dict[str, FunctionReward]:
    """The functions that these rewards are made of, by name; a single function's is the one it has in `rewards`."""
    found: dict[str, FunctionReward] = {}
    for name, reward in rewards.items():
        found |= {name: reward} if isinstance(reward, FunctionReward) else reward.parts
    return found


def leaf_scores(
    rewards: Mapping[str, Reward], images: Tensor, prompts: Sequence[str], latents: Tensor | None = None
) -> dict[str, Tensor]:
    """The checked answers [B] of the functions that these rewards are made of, by name; see `score`.

    A single function's name is the one it has in `rewards`. Functions that wait for something elsewhere are called in
    threads of their own at the same time; the others one after the other in this thread, since they need not be safe
    to call from several. With answers of several batches concatenated, `combined` gives the rewards.
    """
    leaves, enabled = functions(rewards), torch.is_grad_enabled()

    def ask(leaf: FunctionReward) -> Tensor:
        given = images if latents is None or leaf.space != "latent" else latents
        tracked = given.requires_grad and enabled
        return (_answer_with_graph if tracked else _answer_without_graph)(leaf, given, prompts)

    threaded = {name: leaf for name, leaf in leaves.items() if leaf.concurrent}
    if not threaded or len(leaves) == 1:
        return {name: ask(leaf) for name, leaf in leaves.items()}
    local = {name: leaf for name, leaf in leaves.items() if not leaf.concurrent}
    found = _concurrently(threaded, local, ask)
    return {name: found[name] for name in leaves}


def require_latents_of(model: Model, rewards: Mapping[str, Reward]) -> None:
    """Raises RewardError where some of the rewards take other latents than this model's."""
    for leaf in functions(rewards).values():
        leaf.require_latents(model)


def combined(rewards: Mapping[str, Reward], found: Mapping[str, Tensor], prompts: Sequence[str]) -> dict[str, Scores]:
    """The rewards by name, from what `leaf_scores` found.

    Raises RewardError where a combination of finite answers is not finite, or needs statistics that are not measured.
    """
    scores = {}
    for name, reward in rewards.items():
        own = {part: found[part] for part in reward.parts or (name,)}
        total = _finite(reward.name, reward.combine(own), prompts)
        scores[name] = Scores(total, own if reward.parts else {})
    return scores


def answer_in_place(reward: FunctionReward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """As `score(...).total` without gradient, but the function is given these very images, which it may change."""
    with torch.no_grad():
        return _answer(reward, images, prompts).detach().cpu()


def _concurrently(
    threaded: Mapping[str, FunctionReward],
    local: Mapping[str, FunctionReward],
    ask: Callable[[FunctionReward], Tensor],
) -> dict[str, Tensor]:
    """The answers by name: `threaded` each in a thread, `local` in this one. After a failure, calls are cancelled."""
    with ThreadPoolExecutor(len(threaded)) as threads:
        futures = {name: threads.submit(ask, leaf) for name, leaf in threaded.items()}
        try:
            found = {name: ask(leaf) for name, leaf in local.items()}
            for future in as_completed(futures.values()):
                future.result()
        except BaseException:
            # The other answers are not needed. A call that has only been submitted is cancelled once it has begun.
            while pending := [name for name, future in futures.items() if not future.done()]:
                for name in pending:
                    threaded[name].cancel()
                wait((futures[name] for name in pending), timeout=0.1)
            raise
        return found | {name: future.result() for name, future in futures.items()}


def _answer_without_graph(reward: FunctionReward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    return answer_in_place(reward, images.clone(), prompts)


def _answer_with_graph(reward: FunctionReward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    with torch.enable_grad():  # a new thread has the default mode, whatever the caller's is
        leaf = images.detach().requires_grad_()
        answer = _answer(reward, leaf.clone(), prompts)
        if not answer.requires_grad:
            claim = "is declared differentiable, but its" if reward.differentiable else "is not differentiable: its"
            raise RewardError(
                f"the reward {reward.name} {claim} answer has no gradient: remove what leaves torch (.detach(), "
                ".numpy(), PIL), or do not declare it as differentiable"
            )
        return _Graph.apply(images, (leaf, answer), reward.name).to(images.device)  # type: ignore[union-attr]


class _Graph(torch.autograd.Function):
    """A reward's own graph inside the caller's, so that errors in its backward pass are reported as the reward's."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, inside: tuple[Tensor, Tensor], name: str) -> Tensor:
        ctx.inside, ctx.name = inside, name
        return inside[1].detach().clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        leaf, answer = ctx.inside
        back = lambda: torch.autograd.grad(answer, leaf, grads[0])  # noqa: E731
        return call(back, f"in its backward pass, the reward {ctx.name}")[0], None, None


def _answer(reward: FunctionReward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """One call of a function: its answer as a new tensor [B] of finite float32 numbers. Raises RewardError."""
    answer = call(lambda: reward.function(images, list(prompts)), f"the reward {reward.name}")
    return call(lambda: _finite(reward.name, answer, prompts), f"the answer of the reward {reward.name}").clone()


def _finite(name: str, answer: object, prompts: Sequence[str]) -> Tensor:
    """The answer as a float32 tensor [B]. Raises RewardError where it is none, or not finite."""
    exact = numbers(answer, name, len(prompts))
    if exact.shape != (len(prompts),):
        raise RewardError(
            f"the reward {name} returned shape {list(exact.shape)} for {len(prompts)} images, "
            f"but must return one number for each: shape [{len(prompts)}]"
        )
    values = exact.float()
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        rule = "; rewards must be finite"
        if exact[bad[0]].isfinite():
            rule = f", which float32 cannot hold: rewards must lie within ±{torch.finfo(torch.float32).max:.2g}"
        raise RewardError(
            f"the reward {name} returned {exact[bad[0]].item()} for {len(bad)} of {len(prompts)} images "
            f"(the first has the prompt {one_line(repr(prompts[bad[0]]), 200)}){rule}"
        )
    return values
