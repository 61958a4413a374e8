"""The bundled world's own benchmark: questions that follow from a prompt of its grammar, for the judge to answer.

The questions have the form of GenEval 2's, so that a vision-language model can be asked them as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from tastemaker.data.prompts import load_prompts
from tastemaker.drawings.scene import Request, Wanted, parse
from tastemaker.errors import PromptError
from tastemaker.question_benchmarks.benchmark import (
    YES_NO,
    Benchmark,
    ImageScores,
    Measure,
    Prompt,
    Question,
    by_question_category,
    mean,
    of_images,
)
from tastemaker.rewards.vlm.answers import NUMBERS

LISTS = ("bundled-single", "bundled-attributes", "bundled-count", "bundled-pair")
TAKEN = 16
"""Prompts of each list."""
CATEGORY = "category"
HOW_MANY, ANY = "How many {} are in the image?", "Are there any {} in the image?"
THERE, ALL, GROUND = "Is there {} in the image?", "Are all the {} {}?", "Is the background {}?"


def read(source: str | None = None) -> Benchmark:
    """16 prompts of each kind of the bundled model's, or those of a list that `--prompts` takes.

    Raises PromptError for prompts that are not of the bundled model's grammar.
    """
    if source is None:
        lists = [load_prompts(name) for name in LISTS]
        listed = [prompts.prompts[index] for prompts in lists for index in prompts.spread(TAKEN)]
    else:
        listed = list(load_prompts(source).prompts)
    prompts = tuple(_prompt(prompt, index, source) for index, prompt in enumerate(listed))
    return Benchmark("bundled", source or "the bundled lists", prompts, "choice", 4, measures)


def measures(images: Sequence[ImageScores]) -> list[Measure]:
    """The share of images of which every answer is right, the mean over an image's answers, and answers by category."""
    return [
        of_images("", "all right", images, lambda image: float(min(image.scores.values()) == 1)),
        of_images("", "answers", images, lambda image: mean(list(image.scores.values()))),
        *by_question_category(CATEGORY, images),
    ]


def questions(request: Request) -> tuple[Question, ...]:
    """What is asked about an image of a request: each object, number, attribute and the relation that it names."""
    kinds = [thing.kind for thing in request.things]
    asked = [_counted("objects", len(kinds) * request.count)]
    for kind in dict.fromkeys(kinds):
        asked += [
            (ANY.format(_plural(kind)), "yes", "object"),
            _counted(_plural(kind), kinds.count(kind) * request.count),
        ]
    for thing in request.things:
        words = [word for word in (thing.size, thing.texture, thing.colour) if word]
        if request.template == "count":
            asked += [(ALL.format(_plural(thing.kind), word), "yes", "attribute") for word in words]
        elif kinds.count(thing.kind) == 2:  # of two stars, one must have all that is asked of it
            asked += [(THERE.format(_phrase(*words, thing.kind)), "yes", "attribute")] if words else []
        else:
            asked += [(THERE.format(_phrase(word, thing.kind)), "yes", "attribute") for word in words]
    if request.relation:
        first, second = (_whole(thing) for thing in request.things)
        asked.append((THERE.format(f"{first} {request.relation} {second}"), "yes", "relation"))
    asked += [(GROUND.format(word), "yes", "attribute") for word in (request.pattern, request.ground) if word]
    return tuple(
        Question(str(number), text, (answer,), YES_NO if answer == "yes" else NUMBERS, categories={CATEGORY: (kind,)})
        for number, (text, answer, kind) in enumerate(dict.fromkeys(asked), 1)
    )


def _prompt(prompt: str, index: int, source: str | None) -> Prompt:
    request = parse(prompt)
    if request is None:
        raise PromptError(
            f"{source}: the prompt {prompt!r} is not of the bundled model's grammar, from which its questions follow "
            "(`tastemaker ls prompts` has lists of such prompts)"
        )
    return Prompt(str(index), prompt, questions(request))


def _counted(things: str, number: int) -> tuple[str, str, str]:
    return HOW_MANY.format(things), NUMBERS[number], "count"


def _whole(thing: Wanted) -> str:
    return _phrase(*(word for word in (thing.size, thing.texture, thing.colour) if word), thing.kind)


def _phrase(*words: str) -> str:
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def _plural(kind: str) -> str:
    return kind if kind == "fish" else f"{kind}s"
