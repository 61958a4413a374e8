"""The settings of a labelling project. Free of torch, of HTTP and of the database."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from tastemaker.constraints import check_constraints
from tastemaker.errors import ConfigError, nearest

Mode = Literal["pair", "rank", "best", "rate"]
MODES: tuple[Mode, ...] = ("pair", "rank", "best", "rate")
QUESTIONS: dict[Mode, str] = {
    "pair": "Which image is better?",
    "rank": "Which image is better?",
    "best": "Which image is the best?",
    "rate": "Is this a good image?",
}
"""What labelers are asked where a project has no question of its own."""
IMAGES: dict[Mode, int] = {"pair": 2, "rank": 5, "best": 4, "rate": 1}
"""Images of a task where a project does not say."""
MAX_IMAGES = 16
"""Most images of a task."""
MAX_QUESTION = 500
"""Most characters of a question."""


@dataclass(frozen=True)
class Labelling:
    """How the tasks of a project are labelled. A task is one prompt with K images."""

    mode: Mode = "pair"
    """`pair`: the better of two images. `rank`: the order of K images by comparing two at a time. `best`: the best of
    K images at one glance. `rate`: thumbs up or down for each image."""
    images: int | None = None
    """K, images of a task; None takes 2 for `pair`, 5 for `rank`, 4 for `best` and 1 for `rate`."""
    title: str = "Image preferences"
    """Shown at the top of the page."""
    question: str | None = None
    """Shown above the images; None takes the mode's own."""
    instructions: str = ""
    """Markdown, shown before the first task and on request. HTML in it is shown as text."""
    transitive: bool = True
    """Rank by binary insertion, which assumes that who prefers a to b and b to c prefers a to c. False asks for all
    K (K - 1) / 2 pairs, and shows where answers contradict each other."""
    confirm: bool = True
    """Ranking ends with a look at the whole order, which the labeler may change, and Enter."""
    ties: bool = True
    """Whether two images may be called equal."""
    both_bad: bool = True
    """Whether two images may be called equal and unacceptable; in `best`, whether none may be chosen."""
    skip: bool = True
    """Whether a task may be skipped. It is then open to other labelers."""
    marks: tuple[str, ...] = ("broken", "off-prompt", "harmful")
    """What may be marked on single images besides."""
    overlap: Annotated[int, Gt(0), Le(1000)] = 1
    """Different labelers who label each task."""
    gold_rate: Annotated[float, Ge(0), Le(0.5)] = 0.0
    """Share of a labeler's tasks that are gold tasks, whose answer is known, while there are such tasks."""
    repeat_rate: Annotated[float, Ge(0), Le(0.5)] = 0.0
    """Share of a labeler's tasks that the labeler has had before, shown with the sides swapped."""
    lease_minutes: Annotated[float, Gt(0), Le(10080)] = 15.0
    """Minutes for which a task that was handed out is kept for its labeler after the last sign of life."""
    validation: Annotated[float, Ge(0), Lt(1)] = 0.2
    """Share of the prompts that are set apart for validation, in [0, 1). All tasks of a prompt are in the same part."""
    seed: int = 0
    """Of the order of images, of left and right, of the split, and of where gold and repeated tasks come."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"the mode {self.mode!r} is unknown; {nearest(self.mode, MODES)}")
        check_constraints(self)
        object.__setattr__(self, "marks", tuple(self.marks))
        least = 1 if self.mode == "rate" else 2
        if not least <= self.task_size <= MAX_IMAGES:
            raise ConfigError(
                f"a task of mode {self.mode} has {self.task_size} images, but may have {least} to {MAX_IMAGES}"
            )
        if self.mode == "pair" and self.task_size != 2:
            raise ConfigError(f"a task of mode pair has 2 images, not {self.task_size}: use the mode rank or best")
        _check_texts(self)

    @property
    def task_size(self) -> int:
        """K, images of a task."""
        return IMAGES[self.mode] if self.images is None else self.images

    @property
    def shown_question(self) -> str:
        """What labelers are asked."""
        return QUESTIONS[self.mode] if self.question is None else self.question

    @property
    def reviewed(self) -> bool:
        """Whether a task ends with a look at the whole order."""
        return self.mode == "rank" and self.confirm


def _check_texts(settings: Labelling) -> None:
    limits = {"title": 200, "question": MAX_QUESTION, "instructions": 50_000}
    for name, limit in limits.items():
        text = getattr(settings, name) or ""
        if len(text) > limit:
            raise ConfigError(f"the {name} has {len(text)} characters, but may have {limit}")
    if len(settings.marks) > 9 or len(set(settings.marks)) != len(settings.marks):
        raise ConfigError(f"marks are {', '.join(settings.marks)}, but must be at most 9 different words")
    for mark in settings.marks:
        if not (0 < len(mark) <= 30 and mark == mark.strip() and mark.isprintable()):
            raise ConfigError(f"the mark {mark!r} must have 1 to 30 printable characters, and no spaces around them")


def to_json(settings: Labelling) -> dict[str, Any]:
    """The settings as JSON takes them."""
    return dataclasses.asdict(settings) | {"marks": list(settings.marks)}


def from_json(content: dict[str, Any]) -> Labelling:
    """The settings out of `to_json`. Raises ConfigError for unknown ones."""
    known = [field.name for field in dataclasses.fields(Labelling)]
    for name in content:
        if name not in known:
            raise ConfigError(f"unknown setting {name!r} of a labelling project; {nearest(name, known)}")
    try:
        return Labelling(**content)
    except TypeError as error:
        raise ConfigError(f"the settings of the labelling project cannot be read: {error}") from error
