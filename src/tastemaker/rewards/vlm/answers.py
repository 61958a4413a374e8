"""What a vision-language model is asked and says, and how a number is read out of that. No number is guessed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Query:
    """An image, as a JPEG file, and a question about it."""

    image: bytes
    question: str


@dataclass(frozen=True)
class Word:
    """A token of an answer, and the natural logarithms of the chances of what else could have stood there."""

    text: str
    chances: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Answer:
    """What a model said; its tokens where their chances are known."""

    text: str
    words: tuple[Word, ...] = ()
    why: str = ""
    """Why it ended, where the model says so."""


class Asker(Protocol):
    """Asks a model. `read` raises ValueError for an answer that cannot be used."""

    def __call__(self, queries: Sequence[Query], read: Callable[[Answer], T]) -> list[T]: ...

    def cancel(self) -> None:
        """Ends a call that another thread waits for."""


def said(answer: Answer) -> str:
    """The answer's text. Raises ValueError where it is empty."""
    text = answer.text.strip()
    if not text:
        # One that thinks first may have come to nothing else.
        ended = f" (it ended by {answer.why!r}; `vlm.tokens` is how much it may say)" if answer.why else ""
        raise ValueError(f"the model said nothing{ended}")
    return text


def yes(answer: Answer) -> float:
    """The chance of yes against no, in [0,1]: p(yes) / (p(yes) + p(no)), each in all its spellings.

    Taken at the answer's first word, which must be one of them; 1 or 0 where no chances are known. Raises ValueError.
    """
    text = said(answer)
    match = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"expected an answer that begins with yes or no, but the model said {_quoted(text)}")
    for word in answer.words:
        if _letters(word.text):
            if _letters(word.text) in ("yes", "no"):
                positive, negative = (_chance(word, lambda t, w=w: _letters(t) == w) for w in ("yes", "no"))
                return positive / (positive + negative)
            break  # the word is cut into several tokens
    return float(match[1].lower() == "yes")


def rating(answer: Answer, low: int, high: int) -> float:
    """The rating in [low, high]: its mean over the chances of the numbers of a scale up to 9, else as it is written.

    The answer must hold one number, or one of the form 4/5, 4 out of 5. Raises ValueError.
    """
    text = said(answer)
    whole = re.sub(rf"(\d)\s*(?:/|out of)\s*{high}(?![\d.]*\d)", r"\1", text, flags=re.IGNORECASE)
    numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)", whole)
    if len(set(numbers)) != 1:
        raise ValueError(f"expected one number from {low} to {high}, but the model said {_quoted(text)}")
    written = float(numbers[0])
    if not low <= written <= high:
        raise ValueError(f"expected a number from {low} to {high}, but the model said {_quoted(text)}")
    scale = [str(number) for number in range(low, high + 1)]
    word = next((word for word in answer.words if word.text.strip() == numbers[0]), None)
    # In a longer scale "1" may be the beginning of "10".
    if high > 9 or word is None or numbers[0] not in scale:
        return written
    weights = [_chance(word, lambda text, number=number: text.strip() == number) for number in scale]
    return math.fsum(w * number for w, number in zip(weights, range(low, high + 1), strict=True)) / math.fsum(weights)


def contains(answer: Answer, expected: Iterable[str]) -> bool:
    """Whether one of the expected ways of saying it is in the answer, letter for letter (ddpo-pytorch, rewards.py)."""
    text = said(answer)
    return any(way in text for way in expected)


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
"""Numbers in words, by their value."""


def is_number(word: str) -> bool:
    """Whether it is a number, in digits or in words."""
    return word.isdecimal() or word.lower() in NUMBERS


def _letters(text: str) -> str:
    return re.sub(r"[\W\d_]", "", text).lower()


def _chance(word: Word, is_it: Callable[[str], bool]) -> float:
    return math.fsum(math.exp(chance) for text, chance in word.chances if is_it(text))


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 200 else line[:197] + "...")
