"""The rewards that call a vision-language model: a caption compared with the prompt, a question, a rating, answers.

Each maker takes what follows the reward's name, `MODEL` or `MODEL@URL`, and the settings `vlm`.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tastemaker.data.tables import checked_text, read_records, tidy
from tastemaker.errors import DataError, RewardError
from tastemaker.rewards.base import FunctionReward, RewardFunction
from tastemaker.rewards.jpeg import jpeg_files
from tastemaker.rewards.vlm.answers import (
    Query,
    VisionLanguageModel,
    contains,
    is_number,
    rating,
    text_of,
    yes_probability,
)
from tastemaker.rewards.vlm.settings import PROMPT, Vlm, parse_address

QUALITY = 80
"""Of the JPEG that a model sees (ddpo-pytorch, rewards.py)."""
CAPTION = "Answer concisely: what is going on in this image?"
REFERENCE = f"The image contains {PROMPT}"
YES_NO = f'Does this image show "{PROMPT}"? Please answer yes or no.'
RATING = f'On a scale from {{low}} to {{high}}, how well does this image show "{PROMPT}"? Answer with one number only.'

Log = Callable[[str], None]


def vlm_bertscore(argument: str, settings: Vlm | None = None, log: Log | None = None) -> FunctionReward:
    """The reward `vlm-bertscore:MODEL`: BERTScore recall, at most 1, of the model's description of the image.

    The candidate is the answer, the reference "The image contains {prompt}" (DDPO §5.1; ddpo-pytorch, rewards.py).
    """
    settings = settings or Vlm()
    from tastemaker.rewards.learned.bertscore import load_recall

    model = _model("vlm-bertscore", argument, settings, log)
    recall = load_recall(settings.text_model, settings.text_layer)
    question = settings.question or CAPTION

    def vlm_bertscore(x: Tensor, prompts: Sequence[str]) -> Tensor:
        answers = model(_queries(x, prompts, question), text_of)
        return recall(answers, [_filled(REFERENCE, prompt) for prompt in prompts])

    return _declared(vlm_bertscore, "vlm-bertscore", argument, model, settings)


def vlm_yes_no(argument: str, settings: Vlm | None = None, log: Log | None = None) -> FunctionReward:
    """The reward `vlm-yes-no:MODEL`: the probability in [0,1] of yes against no as the answer to `vlm.question`.

    As VQAScore (Lin et al. 2024), but of yes against no. 1 or 0 where the model gives no log-probabilities.
    """
    settings = settings or Vlm()
    model = _model("vlm-yes-no", argument, settings, log, settings.logprobs)
    question = settings.question or YES_NO

    def vlm_yes_no(x: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.tensor(model(_queries(x, prompts, question), yes_probability))

    return _declared(vlm_yes_no, "vlm-yes-no", argument, model, settings)


def vlm_rating(argument: str, settings: Vlm | None = None, log: Log | None = None) -> FunctionReward:
    """The reward `vlm-rating:MODEL`: a number on `vlm.scale`, its mean over the probabilities where they are known."""
    settings = settings or Vlm()
    model = _model("vlm-rating", argument, settings, log, settings.logprobs)
    low, high = settings.scale
    question = settings.question or RATING.replace("{low}", str(low)).replace("{high}", str(high))
    read = functools.partial(rating, low=low, high=high)

    def vlm_rating(x: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.tensor(model(_queries(x, prompts, question), read))

    return _declared(vlm_rating, "vlm-rating", argument, model, settings)


def vlm_strict(argument: str, settings: Vlm | None = None, log: Log | None = None) -> FunctionReward:
    """The reward `vlm-strict:MODEL`: the share in [0,1] of a prompt's questions whose answer contains what is expected.

    Contained to the letter: `two` is in "twofold", and not in "Two". Questions are those of `vlm.questions`, or for a
    prompt `NUMBER NOUNS` how many there are, and what animal is there (ddpo-pytorch, rewards.py,
    `llava_strict_satisfaction`, and data/prompts.py, `counting`). Raises RewardError for another prompt.
    """
    settings = settings or Vlm()
    model = _model("vlm-strict", argument, settings, log)
    given = None if settings.questions is None else read_questions(settings.questions)

    def vlm_strict(x: Tensor, prompts: Sequence[str]) -> Tensor:
        wanted = [counted(prompt) if given is None else _given(given, prompt) for prompt in prompts]
        files = jpeg_files(x, QUALITY)
        queries = [Query(file, one.question) for file, several in zip(files, wanted, strict=True) for one in several]
        expected = iter([one.answers for several in wanted for one in several])
        answers = iter(model(queries, lambda answer: (text_of(answer), answer)[1]))
        shares = [[contains(next(answers), next(expected)) for _ in several] for several in wanted]
        return torch.tensor([sum(right) / len(right) for right in shares])

    return _declared(vlm_strict, "vlm-strict", argument, model, settings)


@dataclass(frozen=True)
class Expected:
    """A question, and the texts of which one is expected in its answer."""

    question: str
    answers: tuple[str, ...]


def counted(prompt: str) -> tuple[Expected, ...]:
    """The questions about a prompt `NUMBER NOUNS`, and what is expected: its number as it stands there, and its noun
    in the singular (ddpo-pytorch, data/prompts.py, `counting`). Raises RewardError for another prompt.
    """
    number, _, plural = prompt.strip().partition(" ")
    plural = plural.strip()
    if not is_number(number) or not plural:
        raise RewardError(
            f"vlm-strict has no questions about the prompt {prompt!r}: it takes a number and a noun, as in "
            "`two cats`, or questions and answers of your own in vlm.questions=FILE.jsonl"
        )
    return (
        Expected(f"How many {plural} are there in this image?", (number,)),
        Expected("What animal is in this image?", (singular(plural),)),
    )


def singular(noun: str) -> str:
    """What a plural is of; the noun itself where it is none ("one cat", or "fish", which is its own plural)."""
    return _inflect().singular_noun(noun) or noun


@functools.cache
def _inflect() -> Any:
    import inflect

    return inflect.engine()


def read_questions(source: str) -> dict[str, tuple[Expected, ...]]:
    """Questions by prompt, of a file with `{"prompt": "...", "questions": ["..."], "answers": ["..."]}` a line.

    An answer may be a list of alternatives. Raises RewardError.
    """
    path, found = Path(source).expanduser(), {}
    try:
        rows = read_records(path)
    except DataError as error:
        raise RewardError(f"the questions of vlm.questions cannot be read: {error}") from error
    for line, entry in rows:
        try:
            prompt, questions = entry["prompt"], entry["questions"]
            answers = [(one,) if isinstance(one, str) else tuple(one) for one in entry["answers"]]
            texts = [prompt, *questions, *(way for ways in answers for way in ways)]
            if not questions or not all(isinstance(text, str) and text for text in texts) or not all(answers):
                raise ValueError("texts are missing or empty")
            for text in texts:
                checked_text(text, line, "text")
            found[tidy(prompt)] = tuple(Expected(*pair) for pair in zip(questions, answers, strict=True))
        except (ValueError, KeyError, TypeError, DataError) as error:
            raise RewardError(
                f"{line} of the questions (vlm.questions) is not "
                '{"prompt": "two cats", "questions": ["How many cats are there?"], "answers": [["two", "2"]]}: '
                f"{type(error).__name__}: {error}"
            ) from error
    return found


def _given(given: Mapping[str, tuple[Expected, ...]], prompt: str) -> tuple[Expected, ...]:
    if tidy(prompt) not in given:
        raise RewardError(f"vlm-strict has no questions about the prompt {prompt!r}: add a line to vlm.questions")
    return given[tidy(prompt)]


def _model(name: str, argument: str, settings: Vlm, log: Log | None, logprobs: bool = False) -> VisionLanguageModel:
    return load_vlm(f"the reward {name}:{argument}", argument, settings, log, logprobs)


def load_vlm(
    caller: str,
    argument: str,
    settings: Vlm,
    log: Log | None = None,
    logprobs: bool = False,
    written: str = "vlm.logprobs=false",
) -> VisionLanguageModel:
    """The model of an address, `MODEL` in this process or `MODEL@URL` on a server. Raises RewardError.

    `caller` begins its messages, as `the reward NAME`; `written` is the setting that does without `logprobs`.
    """
    address = parse_address(argument)
    if address.urls:
        from tastemaker.rewards.vlm.served import ServedModel

        log = log or (lambda line: print(line, file=sys.stderr))
        return ServedModel(caller, address, settings, log, logprobs, written)
    from tastemaker.rewards.vlm.local import LocalModel

    return LocalModel(caller, address.model, settings, logprobs)


def _queries(x: Tensor, prompts: Sequence[str], question: str) -> list[Query]:
    files = jpeg_files(x, QUALITY)
    return [Query(file, _filled(question, prompt)) for file, prompt in zip(files, prompts, strict=True)]


def _filled(template: str, prompt: str) -> str:
    return re.sub(re.escape(PROMPT), lambda _: prompt, template)


def _declared(
    function: RewardFunction, name: str, argument: str, model: VisionLanguageModel, settings: Vlm
) -> FunctionReward:
    """The reward, whose calls can be cancelled, and whose answers depend on these settings."""
    return FunctionReward(
        function,
        f"{name}:{parse_address(argument).model}",
        cancel=model.cancel,
        concurrent=True,
        settings=settings.figures,
    )
