"""What simulated labelers like and answer: pure functions of a task and of what was judged before.

Each has a hidden utility, how much it likes an image of a prompt, and answers by it with noise. What is drawn at random
depends on the seed, the labeler and the task alone, not on the order in which requests are answered.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor

from tastemaker.constraints import check_constraints
from tastemaker.drawings.judge import judge
from tastemaker.errors import ConfigError
from tastemaker.labelling import ranking
from tastemaker.labelling.ranking import Judgement, State, left_right
from tastemaker.labelling.settings import Labelling
from tastemaker.rewards.base import score
from tastemaker.rewards.registry import load_reward

JUDGE = "judge"
"""The utility that is the share of the prompt's attributes that an image of the bundled model's world shows."""
Utility = Callable[[Tensor, Sequence[str]], Sequence[float]]
"""Images [B,3,H,W] in [0,1] and their prompts to B finite numbers; more is better."""


@dataclass(frozen=True)
class Behaviour:
    """How simulated labelers answer. Utilities, thresholds and the temperature are in the utility's own unit."""

    temperature: Annotated[float, Ge(0)] = 0.05
    """Noise: of two images the left one is preferred with probability sigmoid((left - right) / temperature), and of K
    images one is the best with the softmax of utility / temperature. 0 answers by the utility alone."""
    tie: Annotated[float, Ge(0)] = 0.0
    """Images whose difference, with its noise, is at most this are called equal, where the project has ties."""
    left_bias: float = 0.0
    """Added to the utility of the image on the left; in mode best to that of the first image shown."""
    bad: float | None = None
    """Images below this are bad: both are called so, where the project has that; in mode best none is chosen."""
    good: float = 0.5
    """In mode rate, images at or above this get a thumb up."""
    skip: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of the tasks that are skipped, where the project lets them be."""
    undo: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of the answers that are taken back once, and given again."""
    correct: Annotated[float, Ge(0), Le(1)] = 0.0
    """In mode rank, share of the tasks whose whole order is arranged by the utility before it is confirmed."""
    disagreement: Annotated[float, Ge(0)] = 0.0
    """Standard deviation of what each labeler thinks of an image beside the utility that all share."""
    seconds: Annotated[float, Ge(0)] = 0.0
    """Median seconds that a labeler looks before each answer, log-normal; 0 answers at once."""

    def __post_init__(self) -> None:
        check_constraints(self, "--")
        for name in ("left_bias", "good", "bad", "temperature", "tie", "disagreement", "seconds"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"--{name.replace('_', '-')} is {value}, but must be finite")


# ---------------------------------------------------------------- what a labeler likes


def utility_of(name: str, weights: Mapping[str, float] | None = None) -> Utility:
    """The utility of this name: `judge`, or a reward. `weights` are those of the judge's attributes, 1 by default.

    Raises ConfigError, RewardError.
    """
    if name != JUDGE:
        if weights:
            raise ConfigError(f"the utility {name} has no attributes with weights: only {JUDGE} has")
        reward = load_reward(name)
        return lambda x, prompts: score(reward, x, prompts).total.tolist()
    known = ("count", "object", "colour", "texture", "size", "relation", "ground", "pattern")
    for attribute, weight in (weights or {}).items():
        if attribute not in known or not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"the weight {attribute}={weight:g} must be of {', '.join(known)}, and not negative")
    return lambda x, prompts: _shown(x, prompts, weights or {})


def _shown(x: Tensor, prompts: Sequence[str], weights: Mapping[str, float]) -> list[float]:
    """The weighted share of the attributes that a prompt names which its image shows, in [0, 1]."""
    found = []
    for verdict, prompt in zip(judge(x, prompts), prompts, strict=True):
        if verdict is None:
            raise ConfigError(
                f"the prompt {prompt[:80]!r} is none of the bundled model's world: name a reward as the utility"
            )
        weight = {name: weights.get(name, 1.0) for name in verdict.attributes}
        total = sum(weight.values())
        shown = sum(weight[name] for name, there in verdict.attributes.items() if there)
        found.append(shown / total if total else 0.0)
    return found


@dataclass(frozen=True)
class Taste:
    """What one simulated labeler thinks, and its dice."""

    behaviour: Behaviour
    seed: int
    name: str

    def dice(self, *what: str | int) -> random.Random:
        """Random numbers that depend on the seed, the labeler and what they are for, alone."""
        text = "\0".join(map(str, (self.seed, self.name, *what)))
        return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))

    def liking(self, image: str, utility: float) -> float:
        """The utility that an image has for this labeler."""
        spread = self.behaviour.disagreement
        return utility + spread * self.dice("liking", image).gauss(0, 1) if spread else utility


# ---------------------------------------------------------------- what a labeler answers


@dataclass(frozen=True)
class Seen:
    """A task as a simulated labeler sees it."""

    prompt: str
    images: tuple[str, ...]
    """SHA-256 by position."""
    liking: tuple[float, ...]
    """How much this labeler likes the images, by position."""
    presentation: tuple[int, ...]
    sides: str

    @property
    def occasion(self) -> tuple[str | int, ...]:
        """Tells the task from others, and from itself where it is shown once more with its sides swapped."""
        return (self.prompt, *self.images, *self.presentation, self.sides)


def next_judgement(
    taste: Taste, settings: Labelling, seen: Seen, judgements: Sequence[Judgement], new_id: Callable[[], str]
) -> Judgement | None:
    """What the labeler does next with a task, given all judgements so far; None where it is done."""
    behaviour = taste.behaviour
    now = ranking.state(settings, seen.presentation, judgements)
    live = [judgement for judgement in ranking.live(judgements) if judgement.kind != "mark"]
    if settings.skip and not judgements and taste.dice("skip", *seen.occasion).random() < behaviour.skip:
        return Judgement(new_id(), "skip")
    # Once at most in a task.
    may_undo = bool(live) and not now.skipped and not any(judgement.kind == "undo" for judgement in judgements)
    if may_undo and taste.dice("undo", len(live), *seen.occasion).random() < behaviour.undo:
        return Judgement(new_id(), "undo", supersedes=live[-1].id)
    if settings.mode == "rank" and not now.skipped and now.question is None:
        arranged = any(judgement.kind == "order" for judgement in live)
        if not arranged and taste.dice("correct", *seen.occasion).random() < behaviour.correct:
            order = _arranged(seen, now.order)
            return Judgement(new_id(), "order", order=order if settings.ties else _apart(seen, order), confirmed=True)
    if now.complete:
        return None
    if settings.mode == "best":
        return Judgement(new_id(), "best", image=_best(taste, settings, seen))
    if settings.mode == "rate":
        image = next(image for image in seen.presentation if image not in now.ratings)
        return Judgement(new_id(), "rate", image=image, outcome=_rating(taste, seen, image))
    if now.question is None:
        order = now.order if settings.ties else _apart(seen, now.order)
        return Judgement(new_id(), "order", order=order, confirmed=True)
    left, right = left_right(now.question, seen.presentation, seen.sides)
    outcome = _compared(taste, settings, seen, left, right)
    return Judgement(new_id(), "compare", left=left, right=right, outcome=outcome)


def agreement(behaviour: Behaviour, settings: Labelling, seen: Seen, now: State) -> tuple[int, int]:
    """How many of a task's answers are as the labeler's liking has it, and how many there are that could be.

    In mode rate thumbs, by the threshold; otherwise all preferences that the task says, ties and images that are liked
    equally left out.
    """
    if now.skipped or not now.complete:
        return 0, 0
    liking = seen.liking
    if settings.mode == "rate":
        right = [(liking[image] >= behaviour.good) == (outcome == "up") for image, outcome in now.ratings.items()]
        return sum(right), len(right)
    said = [
        (a, b, outcome)
        for a, b, outcome in ranking.implied(settings, seen.presentation, now)
        if outcome in ("a", "b") and liking[a] != liking[b]
    ]
    return sum((liking[a] > liking[b]) == (outcome == "a") for a, b, outcome in said), len(said)


def pause(taste: Taste, seen: Seen, count: int) -> float:
    """Seconds that the labeler looks before its answer to a task that has `count` judgements."""
    seconds = taste.behaviour.seconds
    return seconds * math.exp(taste.dice("pause", count, *seen.occasion).gauss(0, 0.5)) if seconds else 0.0


def _compared(taste: Taste, settings: Labelling, seen: Seen, left: int, right: int) -> str:
    behaviour = taste.behaviour
    a, b = seen.liking[left], seen.liking[right]
    if behaviour.bad is not None and settings.both_bad and max(a, b) < behaviour.bad:
        return "both_bad"
    dice = taste.dice("compare", *sorted((left, right)), *seen.occasion)
    # The difference of two Gumbel variables is logistic.
    difference = a + behaviour.left_bias - b + behaviour.temperature * _logistic(dice)
    if settings.ties and abs(difference) <= behaviour.tie:
        return "tie"
    if difference == 0:
        return dice.choice(["left", "right"])
    return "left" if difference > 0 else "right"


def _best(taste: Taste, settings: Labelling, seen: Seen) -> int | None:
    behaviour = taste.behaviour
    if behaviour.bad is not None and settings.both_bad and max(seen.liking) < behaviour.bad:
        return None

    def value(image: int) -> tuple[float, float]:
        dice = taste.dice("best", image, *seen.occasion)
        gumbel = -math.log(-math.log(_inside(dice)))
        bias = behaviour.left_bias if image == seen.presentation[0] else 0.0
        return seen.liking[image] + bias + behaviour.temperature * gumbel, dice.random()

    return max(seen.presentation, key=value)


def _rating(taste: Taste, seen: Seen, image: int) -> str:
    noise = taste.behaviour.temperature * _logistic(taste.dice("rate", image, *seen.occasion))
    return "up" if seen.liking[image] + noise >= taste.behaviour.good else "down"


def _arranged(seen: Seen, order: ranking.Order) -> ranking.Order:
    """All images by how much they are liked; those that are liked equally share a place."""
    images = sorted((image for group in order for image in group), key=lambda image: -seen.liking[image])
    return tuple(tuple(group) for _, group in groupby(images, key=lambda image: seen.liking[image]))


def _apart(seen: Seen, order: ranking.Order) -> ranking.Order:
    """The order without shared places, as where comparisons of all pairs contradict each other."""
    return tuple((image,) for group in order for image in sorted(group, key=lambda image: -seen.liking[image]))


def _logistic(dice: random.Random) -> float:
    drawn = _inside(dice)
    return math.log(drawn / (1 - drawn))


def _inside(dice: random.Random) -> float:
    """A number in (0, 1)."""
    return min(max(dice.random(), 1e-12), 1 - 1e-12)
