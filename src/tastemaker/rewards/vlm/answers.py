"""Questions to a vision-language model, its answers, and how a number is read from them. No number is guessed."""

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
class AnswerToken:
    """A token of an answer, with the likeliest tokens at its position and their log-probabilities."""

    text: str
    logprobs: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Answer:
    """A model's answer, with its tokens where their log-probabilities are known."""

    text: str
    tokens: tuple[AnswerToken, ...] = ()
    finish_reason: str = ""
    """Why it ended, where the server says so."""


class VisionLanguageModel(Protocol):
    """A model, here or on a server."""

    def __call__(
        self, queries: Sequence[Query], read: Callable[[Answer], T], received: Callable[[int, T], None] | None = None
    ) -> list[T]:
        """What `read` makes of each query's answer; it raises ValueError for one that cannot be used.

        `received` is called with a query's index and what was read as soon as its answer is there, in any order, so
        that it can be kept should a later one fail.
        """
        ...

    def cancel(self) -> None:
        """Ends a call under way in another thread, where that is possible."""


def text_of(answer: Answer) -> str:
    """The answer's text. Raises ValueError where it is empty."""
    text = answer.text.strip()
    if not text:
        # A model that reasons first may have used up its tokens.
        reason = answer.finish_reason
        ended = f" (finish reason {reason!r}; `vlm.tokens` is the longest answer)" if reason else ""
        raise ValueError(f"the model gave an empty answer{ended}")
    return text


def yes_probability(answer: Answer) -> float:
    """The probability of yes against no, in [0,1]: p(yes) / (p(yes) + p(no)), each in all its spellings.

    Taken at the answer's first word, which must be one of them; 1 or 0 where no log-probabilities are known. Raises
    ValueError.
    """
    text = text_of(answer)
    match = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"expected an answer that begins with yes or no, but the model answered {_quoted(text)}")
    for token in answer.tokens:
        if _letters(token.text):
            if _letters(token.text) in ("yes", "no"):
                positive, negative = (_probability(token, lambda t, w=w: _letters(t) == w) for w in ("yes", "no"))
                return positive / (positive + negative)
            break  # the word is cut into several tokens
    return float(match[1].lower() == "yes")


def rating(answer: Answer, low: int, high: int) -> float:
    """The rating in [low, high]: its mean over the probabilities of the numbers of a scale up to 9, else as written.

    The answer must hold one number, or one of the form 4/5, 4 out of 5. Raises ValueError.
    """
    text = text_of(answer)
    whole = re.sub(rf"(\d)\s*(?:/|out of)\s*{high}(?![\d.]*\d)", r"\1", text, flags=re.IGNORECASE)
    numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)", whole)
    if len(set(numbers)) != 1:
        raise ValueError(f"expected one number from {low} to {high}, but the model answered {_quoted(text)}")
    written = float(numbers[0])
    if not low <= written <= high:
        raise ValueError(f"expected a number from {low} to {high}, but the model answered {_quoted(text)}")
    scale = [str(number) for number in range(low, high + 1)]
    token = next((token for token in answer.tokens if token.text.strip() == numbers[0]), None)
    # In a longer scale "1" may be the beginning of "10".
    if high > 9 or token is None or numbers[0] not in scale:
        return written
    weights = [_probability(token, lambda text, number=number: text.strip() == number) for number in scale]
    return math.fsum(w * number for w, number in zip(weights, range(low, high + 1), strict=True)) / math.fsum(weights)


def contains(answer: Answer, expected: Iterable[str]) -> bool:
    """Whether one of the expected texts is in the answer, letter for letter (ddpo-pytorch, rewards.py)."""
    text = text_of(answer)
    return any(one in text for one in expected)


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
"""Numbers in words, by their value."""


def is_number(word: str) -> bool:
    """Whether it is a number, in digits or in words."""
    return word.isdecimal() or word.lower() in NUMBERS


def _letters(text: str) -> str:
    return re.sub(r"[\W\d_]", "", text).lower()


def _probability(token: AnswerToken, matches: Callable[[str], bool]) -> float:
    return math.fsum(math.exp(logprob) for text, logprob in token.logprobs if matches(text))


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 200 else line[:197] + "...")
