"""Rewards by name: the built-in ones, entry points of other packages, `module:function`, and those on servers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tastemaker.errors import RewardError, nearest
from tastemaker.rewards.endpoints import Remote, is_remote

if TYPE_CHECKING:
    from tastemaker.rewards.contract import Reward

GROUP = "tastemaker.rewards"
"""Entry-point group in which another package names its rewards."""


@dataclass(frozen=True)
class RewardEntry:
    """Where a built-in reward lives, without importing it."""

    target: str
    summary: str
    argument: str | None = None
    """What follows the name after a colon, where anything does; the target then makes the reward from it."""
    differentiable: bool = False
    """The function's own mark, known without importing it: whether methods that need a gradient can use it."""
    default: str | None = None
    """What `argument` is where nothing follows the name. Without one, something must."""


BUILTIN = {
    "jpeg-compressibility": RewardEntry(
        "tastemaker.rewards.jpeg:jpeg_compressibility", "minus the JPEG size in kB (quality 95): simple pictures"
    ),
    "jpeg-incompressibility": RewardEntry(
        "tastemaker.rewards.jpeg:jpeg_incompressibility", "the JPEG size in kB (quality 95): busy pictures"
    ),
    "jpeg-surrogate-compressibility": RewardEntry(
        "tastemaker.rewards.jpeg_surrogate:jpeg_surrogate_compressibility",
        "minus the JPEG size in kB as a small network counts it",
        differentiable=True,
    ),
    "jpeg-surrogate-incompressibility": RewardEntry(
        "tastemaker.rewards.jpeg_surrogate:jpeg_surrogate_incompressibility",
        "the JPEG size in kB as a small network counts it",
        differentiable=True,
    ),
    "judge-score": RewardEntry(
        "tastemaker.rewards.judge:judge_score", "the judge's confidence that the prompt is shown (bundled model)"
    ),
    "colourfulness": RewardEntry(
        "tastemaker.rewards.colour:colourfulness",
        "share of vivid pixels times the entropy of hues, up to 2.81 bits",
    ),
    "soft-colourfulness": RewardEntry(
        "tastemaker.rewards.colour:soft_colourfulness",
        "colourfulness with a gradient: soft threshold and bins",
        differentiable=True,
    ),
    "target-image": RewardEntry(
        "tastemaker.rewards.target:target_image",
        "-10 times the weighted RMS distance to one picture",
        "FILE",
        differentiable=True,
    ),
    "clip-score": RewardEntry(
        "tastemaker.rewards.clip:clip_score",
        "a CLIP's cosine of picture and prompt; the bundled one, or any",
        "MODEL",
        differentiable=True,
        default="bundled",
    ),
    "aesthetic": RewardEntry(
        "tastemaker.rewards.aesthetic:aesthetic",
        "LAION's form of an aesthetic score; a made-up taste for the bundled model, or any",
        "WEIGHTS",
        differentiable=True,
        default="bundled",
    ),
    "hps-v2": RewardEntry(
        "tastemaker.rewards.clip:hps_v2",
        "human preference score v2, a ViT-H-14's cosine",
        "PATH_OR_REPO",
        differentiable=True,
        default="xswu/HPSv2",
    ),
    "hps-v2.1": RewardEntry(
        "tastemaker.rewards.clip:hps_v2_1",
        "human preference score v2.1, a ViT-H-14's cosine",
        "PATH_OR_REPO",
        differentiable=True,
        default="xswu/HPSv2",
    ),
    "pick-score": RewardEntry(
        "tastemaker.rewards.clip:pick_score",
        "PickScore, a ViT-H-14's scaled cosine",
        "PATH_OR_REPO",
        differentiable=True,
        default="yuvalkirstain/PickScore_v1",
    ),
}


def installed() -> dict[str, str]:
    """Names and targets of the rewards that other installed packages offer."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


def differentiable_rewards() -> list[str]:
    """Names of the built-in rewards that have a gradient, without what some need after a colon."""
    return [name for name, entry in BUILTIN.items() if entry.differentiable]


def load_reward(name: str, remote: Remote | None = None, say: Callable[[str], None] | None = None) -> Reward:
    """The reward of this name, which for some is followed by a colon and an argument: `target-image:four.png`.

    A URL, or several after `remote:`, is a reward on servers, which is asked as `remote` says, and tells by `say` when
    it waits for them. Raises RewardError where there is none, its module does not import, or the argument is missing
    or wrong; a server is not asked before the first pictures are.
    """
    if not name:
        raise RewardError("this run names no reward: give one as in --reward jpeg-compressibility (or module:function)")
    if is_remote(name):
        from tastemaker.rewards.remote import RemoteReward

        return RemoteReward(name, remote) if say is None else RemoteReward(name, remote, say)
    first, _, argument = name.partition(":")
    entry = BUILTIN.get(first)
    if entry is not None and entry.argument is not None:
        argument = argument or entry.default
        if not argument:
            raise RewardError(f"the reward {first!r} needs to be told more: give `{first}:{entry.argument}`")
        return _import(entry.target, first)(argument)
    target = BUILTIN[name].target if name in BUILTIN else installed().get(name, name)
    if ":" not in target:
        raise RewardError(
            f"unknown reward {name!r}: {nearest(name, [*BUILTIN, *installed()])} (or give `module:function`)"
        )
    return _import(target, name)


def _import(target: str, name: str) -> Any:
    module_name, _, attribute = target.partition(":")
    # A console script does not look in the folder it is started from, where a user's own module lies.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's own module may raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RewardError(f"the reward {name!r} cannot be imported: module {module_name!r}: {reason}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise RewardError(f"module {module_name!r} has no function {attribute!r}; {nearest(attribute, known)}")
    return function
