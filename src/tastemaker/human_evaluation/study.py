"""A comparison of models by people: what is compared, what is asked, and which model made which image.

The last is in `comparison.json` of the labelling project's folder alone. The database and the server know images by
their content only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tastemaker.errors import ConfigError, StorageError
from tastemaker.labelling.project import COMPARISON
from tastemaker.labelling.settings import MAX_QUESTION, Mode
from tastemaker.runs import atomic

FORMAT = 1
LEAST_MODELS, MOST_MODELS = 2, 3
MOST_NAME = 40
"""Most characters of a model's or a question's name."""
StopWhen = Literal["decided", "complete"]


@dataclass(frozen=True)
class Question:
    """What is asked of each prompt and seed."""

    name: str
    """As results call it."""
    text: str
    """As labelers read it."""


FIDELITY, ALIGNMENT = "fidelity", "alignment"
WORDINGS: dict[str, dict[str, str]] = {
    # "Which image quality appears better?" and "Which image is more consistent with the text?": AlignProp, section 5.3.
    # "the best fit to prompt among three images": B2-DiffuRL, section 4.2.
    FIDELITY: {"pair": "Which image quality appears better?", "best": "Which image quality appears best?"},
    ALIGNMENT: {"pair": "Which image is more consistent with the text?", "best": "Which image fits the prompt best?"},
}
"""The questions of the papers' studies, for two images and for several."""


@dataclass(frozen=True)
class ComparedModel:
    """A model that is compared."""

    name: str
    source: str
    """Where its images come from: a model, run, adapter or folder."""


@dataclass(frozen=True)
class ComparedTask:
    """A task of the labelling project."""

    number: int
    """The task's number in the project."""
    question: int
    """Which of the questions it asks."""
    seed: int
    """Which of its prompt's images they are."""
    models: tuple[int, ...]
    """The model that made the image at each position."""


@dataclass(frozen=True)
class Stopping:
    """When the study may stop, which is settled before it begins."""

    when: StopWhen = "decided"
    """`decided`: when the preference between each two models is decided for each question. `complete`: when all tasks
    have their answers."""
    max_answers: int | None = None
    """Answers to each question after which it stops in any case; None for as many as there are tasks."""
    level: float = 0.95
    """Of the whole study: the chance that no preference is called decided where there is none."""


@dataclass(frozen=True)
class Study:
    """A comparison."""

    uuid: str
    """The labelling project's."""
    models: tuple[ComparedModel, ...]
    questions: tuple[Question, ...]
    tasks: tuple[ComparedTask, ...]
    stopping: Stopping = field(default_factory=Stopping)
    sampling: dict[str, Any] = field(default_factory=dict)
    """How the images were sampled; empty where all were given."""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Each two models, the first named first."""
        count = len(self.models)
        return [(i, j) for i in range(count) for j in range(i + 1, count)]

    @property
    def decisions(self) -> int:
        """Preferences that the study decides: one for each question and two models."""
        return len(self.pairs) * len(self.questions)


def asked(given: Iterable[str], mode: Mode) -> tuple[Question, ...]:
    """Questions out of names of `WORDINGS` and texts of one's own, as NAME=TEXT. Raises ConfigError."""
    found: list[Question] = []
    for word in given:
        name, equals, text = (part.strip() for part in word.partition("="))
        if not equals and name not in WORDINGS:
            raise ConfigError(
                f"the question {word!r} is none of {' and '.join(WORDINGS)}: give one of your own with a name for it, "
                'as in style="Which image has the nicer style?"'
            )
        text = text if equals else WORDINGS[name]["best" if mode == "best" else "pair"]
        if not 0 < len(text) <= MAX_QUESTION:
            raise ConfigError(f"the question {name!r} has {len(text)} characters, but must have 1 to {MAX_QUESTION}")
        found.append(Question(name, text))
    check_names("question", [question.name for question in found])
    if not found:
        raise ConfigError("give one question or more")
    return tuple(found)


def check_names(kind: str, names: Sequence[str]) -> None:
    """Raises ConfigError for names that results cannot have, or that come twice."""
    for name in names:
        if not (0 < len(name) <= MOST_NAME and name.isprintable() and not re.search(r"[|<>\\]", name)):
            raise ConfigError(
                f"the {kind}'s name is {name!r}, but must have 1 to {MOST_NAME} printable characters, and none of |<>\\"
            )
        if names.count(name) > 1:
            raise ConfigError(f"two {kind}s are called {name!r}: give each a name of its own")


def write_study(folder: Path, study: Study) -> None:
    """Writes comparison.json, which its owner alone may read. Raises StorageError."""
    content = {"format": FORMAT, **asdict(study)}
    path = folder / COMPARISON
    try:
        atomic.replace_atomic(path, (json.dumps(content, ensure_ascii=False) + "\n").encode())
        os.chmod(path, 0o600)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def read_study(folder: Path | str) -> Study:
    """The comparison in a labelling project's folder. Raises ConfigError where there is none."""
    path = Path(folder).expanduser() / COMPARISON
    if not os.path.isfile(path):
        raise ConfigError(
            f"{folder} is no comparison of models: it has no {COMPARISON} (`tastemaker compare create` makes one)"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        form = content.pop("format")
        if form != FORMAT:
            raise ConfigError(f"{path} has format {form!r}, but this version of tastemaker reads format {FORMAT}")
        return Study(
            str(content["uuid"]),
            tuple(ComparedModel(**one) for one in content["models"]),
            tuple(Question(**one) for one in content["questions"]),
            tuple(ComparedTask(**{**one, "models": tuple(one["models"])}) for one in content["tasks"]),
            Stopping(**content["stopping"]),
            content["sampling"],
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
