"""How a config names what a Python program passed as an object, which only that program can pass again."""

from __future__ import annotations

import re

from tastemaker.errors import TastemakerError

PREFIX = "in-memory:"
"""Beginning of the names of objects in `Config.model`, `Config.reward` and `Config.prompts`."""


def object_name(text: str) -> str:
    """A setting's value for an object that is called `text`; characters that a reward's name cannot have become _."""
    return PREFIX + re.sub(r"[^\w.<>-]", "_", text)


def require_named(setting: str, value: str, error: type[TastemakerError]) -> None:
    """Raises `error` where a setting names an object of a Python program, which cannot be loaded by its name."""
    if value.startswith(PREFIX):
        raise error(
            f"the {setting} {value} was an object of the Python program that started this run, and cannot be loaded "
            "by its name: go on from Python with tastemaker.resume(run, model=..., reward=..., prompts=...), which "
            "takes the same objects"
        )
