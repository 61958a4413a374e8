"""Prompts: built-in lists, text and JSON-lines files, and how a round draws from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from tastemaker.drawings.scene import COLOURS, KINDS, NUMBERS, PATTERNS, RELATIONS, Request, Wanted
from tastemaker.errors import PromptError, nearest


@dataclass(frozen=True)
class PromptSet:
    """Prompts and how often each is drawn, relative to the others."""

    prompts: tuple[str, ...]
    weights: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def probabilities(self) -> list[float]:
        total = math.fsum(self.weights)
        return [weight / total for weight in self.weights]

    def spread(self, count: int) -> list[int]:
        """Indices of `count` prompts taken evenly from the list; all of them, in order, when it is that short."""
        if count >= len(self):
            return list(range(len(self)))
        return [int((place + 0.5) * len(self) / count) for place in range(count)]


@dataclass(frozen=True)
class PromptList:
    """A built-in list: what it is, and how to make it."""

    summary: str
    make: Callable[[], tuple[str, ...]]

    @property
    def count(self) -> int:
        return len(self.make())


@cache
def _data() -> dict[str, dict]:
    return json.loads(files("tastemaker.prompts").joinpath("lists.json").read_text(encoding="utf-8"))["lists"]


def _from_data(name: str) -> Callable[[], tuple[str, ...]]:
    return lambda: tuple(_data()[name]["prompts"])


def _single() -> tuple[str, ...]:
    return tuple(Request((Wanted(kind, colour),)).caption() for kind in KINDS for colour in COLOURS)


def _eight() -> tuple[str, ...]:
    """Every kind and every colour once."""
    kinds, colours = list(KINDS), list(COLOURS)
    return tuple(Request((Wanted(kind, colours[(3 * n) % 8]),)).caption() for n, kind in enumerate(kinds))


def _attributes() -> tuple[str, ...]:
    """Each kind in each colour, with a ground, a texture or a size to obey as well; 192 prompts."""
    requests = []
    for number, (kind, colour) in enumerate((kind, colour) for kind in KINDS for colour in COLOURS):
        others = [ground for ground in COLOURS if ground != colour]
        ground = others[(3 * number) % len(others)]
        requests += [
            Request((Wanted(kind, colour),), ground=ground, pattern=PATTERNS[number % 3] if number % 2 else None),
            Request((Wanted(kind, colour, size="small" if number % 2 else "big"),)),
            Request((Wanted(kind, colour, texture="striped"),), ground=ground),
        ]
    return tuple(request.caption() for request in requests)


def _count() -> tuple[str, ...]:
    return tuple(
        Request((Wanted(kind, colour),), count).caption() for kind in KINDS for colour in COLOURS for count in NUMBERS
    )


def _pair() -> tuple[str, ...]:
    """Two different objects in two colours and a relation; 224 prompts, each kind and colour equally often."""
    kinds, colours, requests = list(KINDS), list(COLOURS), []
    for number in range(224):
        first, gap = number % 8, 1 + (number // 8) % 7
        tint, shift = (number * 3 + number // 8) % 8, 1 + (number // 56 + number) % 7
        things = (
            Wanted(kinds[first], colours[tint]),
            Wanted(kinds[(first + gap) % 8], colours[(tint + shift) % 8]),
        )
        requests.append(Request(things, relation=RELATIONS[(number // 8) % 4]))
    return tuple(request.caption() for request in requests)


def _and() -> tuple[str, ...]:
    """Any other object and a circle: each kind and each colour of both equally often; 56 prompts."""
    kinds, colours = [kind for kind in KINDS if kind != "circle"], list(COLOURS)
    return tuple(
        Request((Wanted(kind, colours[tint]), Wanted("circle", colours[(tint + 1 + place) % 8]))).caption()
        for place, kind in enumerate(kinds)
        for tint in range(8)
    )


BUILTIN: dict[str, PromptList] = {
    "bundled-single": PromptList("[colour] [object]: every pair that the bundled model knows", _single),
    "bundled-eight": PromptList("eight of them: each object and each colour once", _eight),
    "bundled-attributes": PromptList("one object with a ground, texture or size to obey (bundled model)", _attributes),
    "bundled-count": PromptList("[number] [colour] [objects], two to four (bundled model)", _count),
    "bundled-and": PromptList("[colour] [object] and a [colour] circle, which is to go (bundled model)", _and),
    "bundled-pair": PromptList("[object] on the left of [object] and its kin (bundled model)", _pair),
}
BUILTIN["bundled-kinds"] = PromptList(
    "the eight objects' bare names: classes of benchmarks/models/drawn32", lambda: KINDS
)
BUILTIN["none"] = PromptList("one prompt that says nothing, for models that take none", lambda: ("a picture",))
BUILTIN |= {name: PromptList(entry["summary"], _from_data(name)) for name, entry in _data().items()}


def load_prompts(source: str) -> PromptSet:
    """The built-in list of that name, or the prompts of a .txt or .jsonl file.

    A text file holds a prompt a line; a JSON-lines file holds `{"prompt": "...", "weight": 2}` a line, weight 1
    when left out. Blank lines are skipped. Raises PromptError where nothing usable is there.
    """
    if source in BUILTIN:
        prompts = BUILTIN[source].make()
        return PromptSet(prompts, (1.0,) * len(prompts))
    path = Path(source).expanduser()
    if path.suffix not in (".txt", ".jsonl"):
        raise PromptError(
            f"unknown prompts {source!r}: {nearest(source, list(BUILTIN))} (or give a .txt or .jsonl file)"
        )
    lines = [(number, line.strip()) for number, line in enumerate(_read(path).splitlines(), 1) if line.strip()]
    if not lines:
        raise PromptError(f"the prompt file {path} is empty: expected a prompt a line")
    if path.suffix == ".txt":
        return PromptSet(tuple(line for _, line in lines), (1.0,) * len(lines))
    pairs = [_entry(path, number, line) for number, line in lines]
    return PromptSet(tuple(prompt for prompt, _ in pairs), tuple(weight for _, weight in pairs))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise PromptError(f"there is no prompt file {path}") from error
    except UnicodeDecodeError as error:
        raise PromptError(
            f"the prompt file {path} is not UTF-8 (byte {error.start} cannot be read): save it as UTF-8"
        ) from error
    except OSError as error:
        raise PromptError(f"cannot read the prompt file {path}: {error.strerror}") from error


def _entry(path: Path, number: int, line: str) -> tuple[str, float]:
    expected = f'{path}:{number}: expected {{"prompt": "...", "weight": 1}}'
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(f"{expected}, but the line is not JSON ({error.msg})") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
        raise PromptError(f"{expected}, but found {line[:80]}")
    weight = entry.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight <= 0:
        raise PromptError(f"{expected}, but the weight is {weight!r}: it must be a number greater than 0")
    return entry["prompt"], float(weight)
