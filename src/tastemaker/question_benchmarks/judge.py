"""The bundled world's judge in the place of a vision-language model: it answers the questions of `bundled`."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import TypeVar

import torch
from PIL import Image

from tastemaker.data.images import to_tensor
from tastemaker.drawings.judge import see
from tastemaker.drawings.scene import KINDS, PATTERNS, Scene, Thing, Wanted, parse, relation_of
from tastemaker.errors import RewardError
from tastemaker.rewards.vlm.answers import NUMBERS, Answer, AnswerToken, Query

T = TypeVar("T")
_KINDS = {"fish" if kind == "fish" else f"{kind}s": kind for kind in KINDS}
_FORMS = {
    "count": re.compile(r"How many (\w+) are in the image\?"),
    "any": re.compile(r"Are there any (\w+) in the image\?"),
    "there": re.compile(r"Is there (.+) in the image\?"),
    "all": re.compile(r"Are all the (\w+) (\w+)\?"),
    "ground": re.compile(r"Is the background (\w+)\?"),
}


class JudgeModel:
    """Answers by what the judge sees, each with the probability 1."""

    def __init__(self) -> None:
        self._scenes: dict[bytes, Scene] = {}

    def __call__(
        self, queries: Sequence[Query], read: Callable[[Answer], T], received: Callable[[int, T], None] | None = None
    ) -> list[T]:
        found = []
        for index, query in enumerate(queries):
            word = answer(self._scene(query.image), query.question)
            found.append(read(Answer(word, (AnswerToken(word, ((word, 0.0),)),))))
            if received is not None:
                received(index, found[-1])
        return found

    def cancel(self) -> None:
        """A call cannot be cancelled."""

    def _scene(self, file: bytes) -> Scene:
        digest = hashlib.sha256(file).digest()
        if digest not in self._scenes:
            with Image.open(io.BytesIO(file)) as image:
                self._scenes[digest] = see(torch.stack([to_tensor(image.convert("RGB"))]))[0]
        return self._scenes[digest]


def answer(scene: Scene, question: str) -> str:
    """Yes, No, or a number in words. Raises RewardError for a question that is not of `bundled`'s forms."""
    for form, pattern in _FORMS.items():
        if match := pattern.fullmatch(question):
            found = _answer(scene, form, *match.groups())
            if found is not None:
                return found
    raise RewardError(
        f"the judge does not understand the question {question!r}: it answers those of the benchmark bundled, about "
        "drawings; give a vision-language model by --vlm MODEL@http://HOST:PORT/v1"
    )


def _answer(scene: Scene, form: str, first: str, second: str = "") -> str | None:
    if form in ("count", "any", "all"):
        if first not in _KINDS and (form, first) != ("count", "objects"):
            return None
        things = [thing for thing in scene.things if first == "objects" or thing.kind == _KINDS[first]]
        if form == "count":
            return NUMBERS[min(len(things), len(NUMBERS) - 1)]
        if form == "any":
            return _yes(bool(things))
        return _yes(bool(things) and all(second in (thing.size, thing.texture, thing.colour) for thing in things))
    if form == "ground":
        return _yes(_ground_is(scene, first))
    request = parse(first)
    if request is None or request.count > 1 or request.ground or request.pattern:
        return None
    if request.template == "single":
        return _yes(any(_is(request.things[0], thing) for thing in scene.things))
    return _yes(
        any(
            _is(request.things[0], one)
            and _is(request.things[1], other)
            and request.relation in (None, relation_of(one, other))
            for one, other in permutations(scene.things, 2)
        )
    )


def _ground_is(scene: Scene, word: str) -> bool:
    """Whether a word is the background's pattern, or else its colour."""
    return word == (scene.pattern if word in PATTERNS else scene.ground)


def _is(wanted: Wanted, thing: Thing) -> bool:
    return wanted.kind == thing.kind and all(
        wish in (None, there)
        for wish, there in (
            (wanted.colour, thing.colour), (wanted.texture, thing.texture), (wanted.size, thing.size),
        )
    )  # fmt: skip


def _yes(right: bool) -> str:
    return "Yes" if right else "No"
