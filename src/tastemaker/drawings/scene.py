"""Scenes, the captions that ask for them, and the way from one to the other.

A `Scene` is the whole truth about one drawing; a `Request` is the part of it that a caption names. The
caption grammar follows the prompt templates of the papers ("[colour] [object]", "[object] on the left of
[object]", "[number] [objects]"), extended by sizes, textures and backgrounds.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

KINDS = ("circle", "square", "triangle", "star", "heart", "tree", "house", "fish")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (216, 42, 42),
    "orange": (245, 140, 25),
    "yellow": (250, 218, 55),
    "green": (50, 160, 65),
    "blue": (45, 90, 215),
    "purple": (140, 60, 180),
    "white": (244, 244, 240),
    "black": (26, 26, 30),
}
NUMBERS = {2: "two", 3: "three", 4: "four"}
Pattern = Literal["plain", "striped", "checkered"]
Texture = Literal["solid", "striped"]
Size = Literal["small", "medium", "big"]
Relation = Literal["on the left of", "on the right of", "above", "below"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
TEXTURES: tuple[Texture, ...] = get_args(Texture)
RELATIONS: tuple[Relation, ...] = get_args(Relation)

# Radii as a fraction of the image's side. The gaps between the ranges keep the words unambiguous.
RADIUS: dict[Size, tuple[float, float]] = {"small": (0.16, 0.20), "medium": (0.26, 0.32), "big": (0.38, 0.43)}
COUNT_RADIUS = {2: (0.17, 0.21), 3: (0.15, 0.18), 4: (0.135, 0.16)}
PAIR_RADIUS = (0.17, 0.21)


@dataclass(frozen=True)
class Thing:
    """One object as drawn. `x`, `y` and `radius` are fractions of the image's side; y grows downwards."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float
    texture: Texture = "solid"

    @property
    def size(self) -> Size:
        return "small" if self.radius < 0.23 else "big" if self.radius > 0.35 else "medium"


@dataclass(frozen=True)
class Scene:
    """Everything that a drawing shows."""

    things: tuple[Thing, ...]
    ground: str
    pattern: Pattern = "plain"


@dataclass(frozen=True)
class Wanted:
    """One object as asked for; None where the caption leaves it open."""

    kind: str
    colour: str | None = None
    texture: Texture | None = None
    size: Size | None = None

    def phrase(self, plural: bool = False) -> str:
        noun = _plural(self.kind) if plural else self.kind
        words = [self.size, self.texture, self.colour, noun]
        return " ".join(word for word in words if word and word not in ("solid", "medium"))


@dataclass(frozen=True)
class Request:
    """What a caption asks for: one object, `count` of a kind, or two objects (with or without a relation)."""

    things: tuple[Wanted, ...]
    count: int = 1
    relation: Relation | None = None
    ground: str | None = None
    pattern: Pattern | None = None

    @property
    def template(self) -> Literal["single", "count", "pair"]:
        return "pair" if len(self.things) == 2 else "count" if self.count > 1 else "single"

    def caption(self) -> str:
        """The caption of this request; `parse` is its inverse."""
        if self.template == "count":
            text = f"{NUMBERS[self.count]} {self.things[0].phrase(plural=True)}"
        else:
            text = _with_article(self.things[0].phrase())
        if self.template == "pair":
            text += f" {self.relation or 'and'} {_with_article(self.things[1].phrase())}"
        if self.ground or self.pattern:
            ground = " ".join(word for word in (self.pattern, self.ground, "background") if word)
            text += f" on {_with_article(ground)}"
        return text


def _plural(noun: str) -> str:
    return noun if noun == "fish" else noun + "s"


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


_SINGULAR = {_plural(kind): kind for kind in KINDS} | {kind: kind for kind in KINDS}
_COLOUR = "|".join(COLOURS)
_THING = (
    rf"(?:(small|big) )?(?:(striped|solid) )?(?:({_COLOUR}) )?({'|'.join(sorted(_SINGULAR, key=len, reverse=True))})"
)
_CAPTION = re.compile(
    rf"^(?:an? |(two|three|four) )?{_THING}"
    rf"(?: ({'|'.join(RELATIONS)}|and) an? {_THING})?"
    rf"(?: on an? (?:({'|'.join(PATTERNS)}) )?(?:({_COLOUR}) )?background)?$"
)


def parse(caption: str) -> Request | None:
    """The request that a caption states, or None where the caption is not of this grammar."""
    match = _CAPTION.match(caption.strip().lower())
    if match is None:
        return None
    number, size, texture, colour, noun, joint, size2, texture2, colour2, noun2, pattern, ground = match.groups()
    count = next((n for n, word in NUMBERS.items() if word == number), 1)
    if count > 1 and joint:
        return None
    things = [Wanted(_SINGULAR[noun], colour, texture, size)]  # type: ignore[arg-type]
    if noun2:
        things.append(Wanted(_SINGULAR[noun2], colour2, texture2, size2))  # type: ignore[arg-type]
    relation = joint if joint in RELATIONS else None
    return Request(tuple(things), count, relation, ground, pattern)  # type: ignore[arg-type]


def sample_scene(rng: random.Random) -> tuple[Scene, Request]:
    """Draws a scene and a caption's request for it: 50 % one object, 32 % two, 18 % two to four of a kind.

    The request names the objects always, and everything else most of the time, so that a model learns
    both to obey and to vary what the prompt leaves open.
    """
    ground = rng.choice(list(COLOURS))
    pattern: Pattern = rng.choices(PATTERNS, (0.68, 0.20, 0.12))[0]
    shape = rng.random()
    if shape < 0.50:
        things = (_single(rng, ground),)
    elif shape < 0.82:
        things = _pair(rng, ground)
    else:
        things = _several(rng, ground)
    scene = Scene(things, ground, pattern)
    return scene, request_for(rng, scene)


def _colour(rng: random.Random, *taken: str) -> str:
    return rng.choice([name for name in COLOURS if name not in taken])


def _single(rng: random.Random, ground: str) -> Thing:
    size: Size = rng.choices(("small", "medium", "big"), (0.17, 0.66, 0.17))[0]
    radius = rng.uniform(*RADIUS[size])
    reach = 0.46 - radius
    place = lambda: 0.5 + rng.uniform(-1, 1) * min(reach, 0.22)  # noqa: E731
    texture: Texture = "striped" if size != "small" and rng.random() < 0.2 else "solid"
    return Thing(rng.choice(KINDS), _colour(rng, ground), place(), place(), radius, texture)


def _pair(rng: random.Random, ground: str) -> tuple[Thing, Thing]:
    jitter = lambda spread: rng.uniform(-spread, spread)  # noqa: E731
    low, high = 0.27 + jitter(0.03), 0.73 + jitter(0.03)
    first, second = (low, high) if rng.random() < 0.5 else (high, low)
    across = (0.5 + jitter(0.12), 0.5 + jitter(0.12))
    horizontal = rng.random() < 0.5
    things = []
    taken: list[str] = [ground]
    for along, side in zip((first, second), across, strict=True):
        x, y = (along, side) if horizontal else (side, along)
        colour = _colour(rng, *taken) if rng.random() < 0.85 else _colour(rng, ground)
        taken.append(colour)
        things.append(Thing(rng.choice(KINDS), colour, x, y, rng.uniform(*PAIR_RADIUS)))
    return things[0], things[1]


_CORNERS = ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73))
_LAYOUTS = {
    2: (
        ((0.27, 0.5), (0.73, 0.5)),
        ((0.5, 0.27), (0.5, 0.73)),
        ((0.29, 0.29), (0.71, 0.71)),
        ((0.71, 0.29), (0.29, 0.71)),
    ),
    3: (
        ((0.5, 0.25), (0.25, 0.72), (0.75, 0.72)),
        ((0.25, 0.28), (0.75, 0.28), (0.5, 0.75)),
        _CORNERS[:3],
        _CORNERS[1:],
    ),
    4: (_CORNERS,),
}


def _several(rng: random.Random, ground: str) -> tuple[Thing, ...]:
    count = rng.choice((2, 3, 4))
    kind, colour = rng.choice(KINDS), _colour(rng, ground)
    radius = rng.uniform(*COUNT_RADIUS[count])
    spread = 0.035
    return tuple(
        Thing(kind, colour, x + rng.uniform(-spread, spread), y + rng.uniform(-spread, spread), radius)
        for x, y in rng.choice(_LAYOUTS[count])
    )


def relation_of(first: Thing, second: Thing) -> Relation:
    """Where the first thing is, seen from the second: along the axis on which they are further apart."""
    dx, dy = second.x - first.x, second.y - first.y
    if abs(dx) >= abs(dy):
        return "on the left of" if dx > 0 else "on the right of"
    return "above" if dy > 0 else "below"


def request_for(rng: random.Random, scene: Scene) -> Request:
    """A request that `scene` fulfils, naming what is in it with the usual chances."""
    pair = len({(thing.kind, thing.colour) for thing in scene.things}) > 1
    things = scene.things if pair else scene.things[:1]
    wanted = [
        _wanted(rng, thing, single=len(scene.things) == 1, keep_colour=0.95 if pair else 0.88) for thing in things
    ]
    request = Request(tuple(wanted), count=1 if pair else len(scene.things))
    if pair and rng.random() < 0.8:
        request = replace(request, relation=relation_of(*scene.things[:2]))
    if rng.random() < 0.6:
        named = (scene.pattern != "plain" and rng.random() < 0.92) or rng.random() < 0.2
        request = replace(request, ground=scene.ground, pattern=scene.pattern if named else None)
    return request


def _wanted(rng: random.Random, thing: Thing, single: bool, keep_colour: float) -> Wanted:
    return Wanted(
        kind=thing.kind,
        colour=thing.colour if rng.random() < keep_colour else None,
        texture=thing.texture if thing.texture != "solid" and rng.random() < 0.85 else None,
        size=thing.size if single and thing.size != "medium" and rng.random() < 0.85 else None,
    )
