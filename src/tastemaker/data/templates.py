"""Prompts out of templates: `a(n) [animal] [activity]`, each combination of the lists' words once, made when asked for.

Nothing is written out before it is chosen, so that a template may have more prompts than fit into memory.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tastemaker.errors import PromptError

if TYPE_CHECKING:
    from tastemaker.data.prompt_set import PromptSet

MOST = 100_000
"""Prompts in one list."""
_HOLE = re.compile(r"\[([^\[\]]*)\]")
_ARTICLE = re.compile(r"\b([Aa])\(n\)\s+(?=\S)")
_SHUFFLED = 2**20
"""Up to how many places are shuffled as a whole; out of more, few are drawn one by one."""


@dataclass(frozen=True)
class Template:
    """A text with holes, and what goes into each."""

    text: str
    pieces: tuple[str, ...]
    """The text around the holes, one more than there are holes."""
    words: tuple[PromptSet, ...]

    @property
    def count(self) -> int:
        """Combinations, of which there may be more than `len` can say."""
        return math.prod(len(words) for words in self.words)

    def prompt(self, place: int) -> tuple[str, float]:
        """A combination and its weight, the product of its words'; the words of the last brackets change fastest."""
        chosen, weight = [], 1.0
        for words in reversed(self.words):
            place, index = divmod(place, len(words))
            chosen.append(words.prompts[index])
            weight *= words.weights[index]
        text = self.pieces[0]
        for word, piece in zip(reversed(chosen), self.pieces[1:], strict=True):
            text += word + piece
        return articles(text), weight


def is_template(text: str) -> bool:
    """Whether a text has words in square brackets."""
    return _HOLE.search(text) is not None


def parse(text: str, find: Callable[[str], PromptSet]) -> Template:
    """A template whose holes `find` fills: `[animal]` by a list's name, `[red|green]` by the words themselves.

    Raises PromptError for brackets that are empty or that `find` does not know, and for brackets without their pair.
    """
    pieces = _HOLE.split(text)
    if any(bracket in piece for piece in pieces[::2] for bracket in "[]"):
        raise PromptError(
            f"the template {text!r} has a bracket without its pair, or brackets within brackets: write each list as "
            "[animal], and prompts with brackets of their own in a file"
        )
    words = []
    for slot in pieces[1::2]:
        if not slot.strip():
            raise PromptError(f"the template {text!r} has empty brackets []: name a list in it, as in [animal]")
        words.append(find(slot.strip()))
    return Template(text, tuple(pieces[::2]), tuple(words))


def articles(text: str) -> str:
    """The text with each a(n) made a or an, as the word after it is spoken (inflect, which DDPO's code uses)."""
    if not _ARTICLE.search(text):
        return text
    import inflect

    engine = inflect.engine()

    def article(match: re.Match[str]) -> str:
        found = str(engine.a(text[match.end() :])).partition(" ")[0]
        return match[1] + found[1:] + " "

    return _ARTICLE.sub(article, text)


def drawn(total: int, first: int, last: int) -> list[int]:
    """The first-th to last-th place, counted from 1, of a shuffle of range(total) that is always the same.

    Two stretches that do not overlap have no place in common. Memory and time are those of `last` places, however
    large `total` is.
    """
    rng = random.Random(0)
    if total <= _SHUFFLED:
        order = list(range(total))
        rng.shuffle(order)
        return order[first - 1 : last]
    seen: dict[int, None] = {}
    while len(seen) < last:
        seen[rng.randrange(total)] = None
    return list(seen)[first - 1 : last]
