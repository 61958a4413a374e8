"""Labelers as a reward: whose name it is, and how long they are waited for. Free of torch and of HTTP.

The token is never a setting, only the name of the environment variable that holds it: a run writes its settings down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from tastemaker.constraints import check_constraints
from tastemaker.errors import RewardError
from tastemaker.rewards.serving.settings import check_variable, endpoints

PREFIX = "label:"
TOKEN_ENV = "TASTEMAKER_LABEL_TOKEN"
"""The variable that the admin token of a labelling app elsewhere is read from, where no other is named."""


@dataclass(frozen=True)
class Labelers:
    """How people are asked; only for a `reward` that begins with label: (docs/guides/live-labelling.md)."""

    wait: Annotated[float, Ge(0)] = 86400.0
    """Seconds to wait for labelers to label a round's images before the run ends, with a checkpoint."""
    server_wait: Annotated[float, Ge(0)] = 300.0
    """Seconds to wait for a labelling app that is down or silent before the run ends; 0 tries once."""
    poll: Annotated[float, Gt(0)] = 2.0
    """Seconds between two questions to the app whether the images are labelled."""
    timeout: Annotated[float, Gt(0)] = 120.0
    """Seconds that one request may take."""
    token_env: str = TOKEN_ENV
    """Name of the environment variable with the admin token of an app that is given by its address; for a project's
    folder the token is read there. The token itself is never written anywhere."""

    def __post_init__(self) -> None:
        check_constraints(self, "labelers.")
        check_variable("labelers.token_env", self.token_env)


def is_label(name: str) -> bool:
    """Whether a reward's name is that of labelers."""
    return name.startswith(PREFIX)


def place(name: str) -> str:
    """The folder or the address of the labelling project in a reward's name, `label:PLACE`, without a last slash.

    Raises RewardError where there is none, or where it is no address.
    """
    given = name.removeprefix(PREFIX).strip()
    if not given:
        raise RewardError("the reward label: names no labelling project: give label:FOLDER or label:http://HOST:PORT")
    if not given.startswith(("http://", "https://")):
        return given
    urls = endpoints(given)
    if len(urls) != 1:
        raise RewardError(f"the reward {name} names {len(urls)} labelling apps, but a project has one")
    return urls[0]


def least_size(mode: str) -> int:
    """Images that a task of this mode has at least."""
    return 1 if mode == "rate" else 2


def task_sizes(mode: str, most: int, count: int) -> tuple[int, ...]:
    """How many images the tasks have that `count` images of one prompt are put into: at most `most`, all nearly as
    many.

    Raises RewardError where a task would have too few, with the numbers that would do.
    """
    tasks = -(-count // most)
    base, more = divmod(count, tasks)
    if base < least_size(mode):
        few = f"{count} image{'s' if count != 1 else ''} of one prompt cannot be put into tasks of mode {mode}, which "
        if mode == "pair":
            raise RewardError(f"{few}have 2 images each: give 2, 4, 6, ... images of each prompt")
        raise RewardError(f"{few}have 2 to {most} images: give {most}, or a multiple of that, of each prompt")
    return (base + 1,) * more + (base,) * (tasks - more)
