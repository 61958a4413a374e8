"""From a model's answer to a score in [0,1]. An answer that is none of a question's choices is wrong, and counted."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tastemaker.errors import RewardError
from tastemaker.question_benchmarks.benchmark import Question, Scoring
from tastemaker.question_benchmarks.settings import WRITTEN
from tastemaker.rewards.vlm.answers import NUMBERS, Answer, text_of

Note = Literal["", "no choice", "not listed"]
"""What must be said of an answer beside its score. "no choice": it is none of the question's choices. "not listed": the
expected answer is not among the likeliest words, so that its probability is taken for 0."""


@dataclass(frozen=True)
class Scored:
    """A model's answer with its score."""

    text: str
    score: float
    note: Note = ""


def require_usable(answer: Answer, scoring: Scoring, written: bool) -> Answer:
    """The answer, if `score` can read it.

    Raises ValueError where it is empty, and RewardError where probabilities are needed and the model gives none.
    """
    text_of(answer)
    if scoring == "probability" and not written and not answer.tokens:
        raise RewardError(
            "this benchmark is of the probabilities of answers, and the model gives no log-probabilities: take a "
            f"server that does (vLLM, SGLang, Ollama from 0.12.11 on), or give {WRITTEN} to count answers as they are "
            "written, which is another measure"
        )
    return answer


def score(
    answer: Answer,
    question: Question,
    scoring: Scoring,
    written: bool,
    nearest: Callable[[str, Sequence[str]], str] | None = None,
) -> Scored:
    """The score of an answer that is usable. With `written`, probabilities are replaced by 1 and 0 for the answer as
    it is written. `nearest` finds the choice that an answer in other words is closest to."""
    text = answer.text.strip()
    if scoring == "probability" and not written:
        return _probability(text, answer, question)
    found = choose(text, question.choices)
    if found is None and nearest is not None:
        found = nearest(text, question.choices)
    right = {normalised(one) for one in question.expected}
    return Scored(text, float(found is not None and normalised(found) in right), "" if found else "no choice")


def spellings(word: str) -> set[str]:
    """How an answer of one word may be written: `four` as four, Four and 4 (GenEval2, evaluation.py, `soft_tifa`)."""
    digits = {str(NUMBERS.index(word.lower()))} if word.lower() in NUMBERS else set()
    return {word, word.lower(), word.capitalize()} | digits


def _probability(text: str, answer: Answer, question: Question) -> Scored:
    """That the answer's first token is one of the expected answers, in all their spellings, with or without a blank."""
    wanted = set().union(*map(spellings, question.expected))
    listed = [logprob for token, logprob in answer.tokens[0].logprobs if token.strip() in wanted]
    chance = min(1.0, math.fsum(map(math.exp, listed)))
    return Scored(text, chance, "" if listed else "not listed")


def choose(text: str, choices: tuple[str, ...]) -> str | None:
    """Which of the choices an answer is: all of it, its beginning, or the only one in it; None where it is none."""
    said = normalised(text)
    named = {normalised(choice): choice for choice in choices}
    if said in named:
        return named[said]
    first = [one for one in named if _has(one, said, start=True)]
    if first:
        return named[max(first, key=len)]
    inside = [one for one in named if _has(one, said)]
    # Of "white" and "off white", a longer one that is there stands for what is in it.
    longest = [one for one in inside if not any(one != other and _has(one, other) for other in inside)]
    return named[longest[0]] if len(longest) == 1 else None


def normalised(text: str) -> str:
    """An answer in lower case, with numbers in digits, and without articles and punctuation."""
    words = re.findall(r"[^\W_]+(?:['’.-][^\W_]+)*", text.lower())
    return " ".join(
        str(NUMBERS.index(word)) if word in NUMBERS else word for word in words if word not in ("a", "an", "the")
    )


def _has(part: str, whole: str, start: bool = False) -> bool:
    """Whether the words of a part are in the whole, or at its beginning."""
    at = f" {whole} ".find(f" {part} ") if part else -1
    return at == 0 if start else at >= 0
