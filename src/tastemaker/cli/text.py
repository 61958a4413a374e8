"""Text on the command line, which a locale that is not UTF-8 (LC_ALL=C) does not decode."""

from __future__ import annotations

import os
import re
from dataclasses import replace

from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError

_UNDECODED = re.compile("[\ud800-\udfff]")
"""Python's stand-ins for bytes of a word that the locale's encoding lacks (PEP 383)."""


def is_undecoded(word: str) -> bool:
    """Whether the locale's encoding lacks some of a word's bytes."""
    return _UNDECODED.search(word) is not None


def as_text(word: str, flag: str) -> str:
    """A word that is text: as UTF-8, where the locale could not decode it. Raises ConfigError where it is no text."""
    if not is_undecoded(word):
        return word
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError:  # also of fsencode, for what no command line holds
        shown = word.encode("ascii", "backslashreplace").decode("ascii")
        raise ConfigError(f"{flag} is '{shown}', which is not text in UTF-8") from None


def as_source(word: str, flag: str) -> str:
    """A word that names a file, as in `dataset:FILE`, `100 of FILE` or `MODULE:FUNCTION`, or else is text.

    Raises ConfigError where it is neither.
    """
    named = (word, word.partition(":")[2], word.partition(" of ")[2], f"{word.partition(':')[0]}.py")
    return word if any(os.path.lexists(name) for name in named if "\0" not in name) else as_text(word, flag)


def decoded(config: Config) -> Config:
    """A run's settings with those decoded that are text. Raises ConfigError where one is no text."""
    question, unseen = config.vlm.question, config.evaluation.unseen
    rewards = tuple(as_source(name, "evaluation.rewards") for name in config.evaluation.rewards)
    return replace(
        config,
        prompts=as_source(config.prompts, "prompts"),
        reward=as_source(config.reward, "reward"),
        evaluation=replace(
            config.evaluation,
            rewards=rewards,
            unseen=None if unseen is None else as_source(unseen, "evaluation.unseen"),
        ),
        vlm=replace(config.vlm, question=None if question is None else as_text(question, "vlm.question")),
    )
