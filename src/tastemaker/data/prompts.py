"""Prompts: built-in lists, templates, files and data sets, and how a round draws from them (docs/guides/prompts.md)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from tastemaker.data.prompt_set import PromptSet
from tastemaker.data.templates import MOST, Template, drawn, is_template
from tastemaker.data.templates import parse as parse_template
from tastemaker.drawings.scene import COLOURS, KINDS, NUMBERS, PATTERNS, RELATIONS, Request, Wanted, parse
from tastemaker.errors import DataError, PromptError, nearest
from tastemaker.in_memory import require_named


@dataclass(frozen=True)
class PromptList:
    """A built-in list: what it is, and how to make it."""

    summary: str
    make: Callable[[], tuple[str, ...]]
    size: int | None = None
    """How many they are, where making them takes long."""

    @property
    def count(self) -> int:
        return len(self.make()) if self.size is None else self.size


@cache
def _data() -> dict[str, dict]:
    return json.loads(files("tastemaker.data").joinpath("prompt_lists.json").read_text(encoding="utf-8"))


def _from_data(kind: str, name: str) -> Callable[[], tuple[str, ...]]:
    return lambda: tuple(_data()[kind][name]["prompts"])


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
        Request((Wanted(kind, colours[tint]), Wanted("circle", colours[(tint + 1 + index) % 8]))).caption()
        for index, kind in enumerate(kinds)
        for tint in range(8)
    )


def _held_out(kind: str, colour: str) -> bool:
    """Whether a kind in a colour is kept for testing: 16 of the 64, each kind and each colour twice."""
    return (list(COLOURS).index(colour) - 3 * KINDS.index(kind)) % len(COLOURS) in (2, 5)


def _for_test(index: int, prompt: str) -> bool:
    """Whether a prompt of a bundled list is kept for testing: by its index among pairs, by its object elsewhere."""
    request = parse(prompt)
    assert request is not None, prompt
    if request.template == "pair":
        return (index % 8 + 2 * (index // 8) + 3 * (index // 56)) % 4 == 0
    (thing,) = request.things
    return _held_out(thing.kind, thing.colour or "")


def _split(make: Callable[[], tuple[str, ...]], test: bool) -> Callable[[], tuple[str, ...]]:
    return lambda: tuple(prompt for index, prompt in enumerate(make()) if _for_test(index, prompt) == test)


_BUNDLED = {
    "bundled-single": PromptList("[colour] [object]: every pair that the bundled model knows", _single),
    "bundled-attributes": PromptList("one object with a ground, texture or size to obey (bundled model)", _attributes),
    "bundled-count": PromptList("[number] [colour] [objects], two to four (bundled model)", _count),
    "bundled-pair": PromptList("[object] on the left of [object] and its kin (bundled model)", _pair),
}
BUILTIN: dict[str, PromptList] = {}
for _name, _list in _BUNDLED.items():
    BUILTIN[_name] = _list
    for _part in ("train", "test"):
        BUILTIN[f"{_name}-{_part}"] = PromptList(
            f"{_name}, {'a quarter kept for testing' if _part == 'test' else 'the rest, for training'}",
            _split(_list.make, _part == "test"),
        )
BUILTIN |= {
    "bundled-eight": PromptList("eight of bundled-single: each object and each colour once", _eight),
    "bundled-and": PromptList("[colour] [object] and a [colour] circle, which is to go (bundled model)", _and),
    "bundled-kinds": PromptList("the eight objects' bare names: classes of benchmarks/models/drawn32", lambda: KINDS),
    "none": PromptList("one prompt that says nothing, for models that take none", lambda: ("a picture",)),
    **{name: PromptList(entry["summary"], _from_data("lists", name)) for name, entry in _data()["lists"].items()},
    "thesis-pink-test": PromptList(
        "64 other animals with sunglasses in 8 other colours (thesis, evaluation)",
        lambda: load_prompts("A photograph of a(n) [thesis-animal] wearing [thesis-colour] sunglasses.").prompts,
        512,
    ),
}
WORDS: dict[str, PromptList] = {
    **{name: PromptList(entry["summary"], _from_data("words", name)) for name, entry in _data()["words"].items()},
    "bundled-kind": PromptList("8 objects that the bundled model knows", lambda: KINDS),
    "bundled-colour": PromptList("8 colours that it knows", lambda: tuple(COLOURS)),
    "bundled-relation": PromptList("4 relations that it knows", lambda: RELATIONS),
}
"""Lists of words, for the holes of templates."""
FILES = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_TAKEN = re.compile(r"(?:(\d{1,9})-)?(\d{1,9}) of (.+)", re.DOTALL)


def load_prompts(source: str) -> PromptSet:
    """Prompts by what `--prompts` says, the first that it is:

    - a built-in list's name;
    - `dataset:NAME` or `dataset:NAME:SPLIT`: a Hugging Face data set, a folder that `datasets` reads or wrote, or a
      parquet file, with a column prompt, caption or text, and weight where there are weights;
    - a .txt file, with a prompt a line; a .jsonl file, with `{"prompt": "...", "weight": 2}` a line; a .json, .csv,
      .tsv or .parquet file with such columns (docs/guides/tables.md). A weight is 1 when left out, blank lines are
      skipped;
    - a template, `a(n) [animal] [activity]`: all combinations of built-in lists, files, or words as in `[red|green]`;
    - `1000 of` any of these, or `1001-1100 of` it: so many drawn from it at random, always the same.

    A prompt that a file or data set has several times is one, with the sum of their weights. Raises PromptError where
    nothing usable is there.
    """
    require_named("prompts", source, PromptError)
    if not source:
        raise PromptError(
            f"no prompts are given: give --prompts a list of `tastemaker ls prompts`, a {', '.join(FILES[:-1])} or "
            f"{FILES[-1]} file, dataset:NAME, or a template such as 'a(n) [animal] [activity]'"
        )
    return _usable(_load(source), source)


def _load(source: str) -> PromptSet:
    if source in BUILTIN:
        prompts = BUILTIN[source].make()
        return PromptSet(prompts, (1.0,) * len(prompts))
    if source.startswith("dataset:"):
        from tastemaker.data.prompt_tables import from_dataset

        return from_dataset(source.removeprefix("dataset:"))
    path = Path(source).expanduser()
    if (taken := _TAKEN.fullmatch(source)) and not _exists(path):
        return _drawn(source, int(taken[1] or 1), int(taken[2]), taken[3])
    if path.suffix.lower() in FILES and (_exists(path) or not is_template(source)):
        from tastemaker.data.prompt_tables import from_file

        return from_file(path)
    if is_template(source):
        template = _template(source)
        if template.count > MOST:
            raise PromptError(
                f"the template {source!r} has {template.count:,} prompts, more than {MOST:,}: draw some of them, "
                f"as in '1000 of {source}'"
            )
        return _prompts([template.prompt(index) for index in range(template.count)])
    if _exists(path) or _is_folder(path):
        raise PromptError(
            f"{source} is {'a file' if _exists(path) else 'a folder'} that is not read as prompts: give a "
            f"{', '.join(FILES[:-1])} or {FILES[-1]} file, or dataset:FOLDER for what the datasets library reads"
        )
    raise PromptError(
        f"unknown prompts {source!r}: {nearest(source, list(BUILTIN))} (or give a {', '.join(FILES[:-1])} or "
        f"{FILES[-1]} file, dataset:NAME, or a template such as 'a(n) [animal] [activity]')"
    )


def _template(source: str) -> Template:
    checked_prompts([source], "template")
    return parse_template(source, _words)


def _drawn(source: str, first: int, last: int, of: str) -> PromptSet:
    """The first-th to last-th of a shuffled list or template."""
    if is_template(of) and of not in BUILTIN and not _exists(Path(of).expanduser()):
        template = _template(of)
        total, at = template.count, template.prompt
    else:
        whole = load_prompts(of)
        total, at = len(whole), lambda index: (whole.prompts[index], whole.weights[index])
    if not 1 <= first <= last:
        raise PromptError(f"{source!r} takes the prompts {first} to {last}: expected FIRST-LAST, counted from 1")
    if last > min(total, MOST):
        has = f"{of!r} has only {total:,}" if last > total else f"a list has at most {MOST:,}"
        raise PromptError(f"{source!r} takes prompts up to number {last:,}, but {has}")
    return _prompts([at(index) for index in drawn(total, first, last)])


def _words(name: str) -> PromptSet:
    """What goes into a template's brackets. Raises PromptError."""
    if "|" in name:
        words = tuple(word.strip() for word in name.split("|"))
        if not all(words):
            raise PromptError(f"[{name}] has an empty choice: expected words with | between them, as in [red|green]")
        return PromptSet(words, (1.0,) * len(words))
    if name in WORDS:
        words = WORDS[name].make()
        return PromptSet(words, (1.0,) * len(words))
    if name in BUILTIN or name.startswith("dataset:") or Path(name).suffix.lower() in FILES:
        return load_prompts(name)
    raise PromptError(
        f"unknown words [{name}]: {nearest(name, [*WORDS, *BUILTIN])} (or give a {', '.join(FILES[:-1])} or "
        f"{FILES[-1]} file, or words as in [red|green])"
    )


def _prompts(pairs: Sequence[tuple[str, float]]) -> PromptSet:
    return PromptSet(tuple(prompt for prompt, _ in pairs), tuple(weight for _, weight in pairs))


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text that is too long for a name, say
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path != Path() and path.is_dir()
    except (OSError, ValueError):
        return False


def checked_prompts(prompts: Sequence[str], what: str = "prompt") -> tuple[str, ...]:
    """Prompts given one by one. Raises PromptError for what is no text: half surrogates, NULs, other types."""
    from tastemaker.data.tables import checked_text

    try:
        return tuple(checked_text(prompt, f"{what} {number}", what) for number, prompt in enumerate(prompts, 1))
    except DataError as error:
        raise PromptError(str(error)) from error


def _usable(found: PromptSet, source: str) -> PromptSet:
    """Raises PromptError for weights that cannot be added up, or are 0 as the product of several."""
    try:
        total = math.fsum(found.weights)
    except OverflowError:
        total = math.inf
    if not (math.isfinite(total) and min(found.weights) > 0):
        raise PromptError(f"the weights of {source} are too large or too small to draw by: divide them by their mean")
    return found
