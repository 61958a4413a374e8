"""Prompts that are longer than a text encoder reads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from tastemaker.models.library_logging import quiet

_LOGGER = logging.getLogger(__name__)


def longer(tokenizer: Any, prompts: Sequence[str], limit: int) -> list[tuple[str, int]]:
    """The prompts with more than `limit` tokens, begin and end included, and how many."""
    counts = [len(ids) for ids in tokenizer(list(prompts)).input_ids]
    return [pair for pair in zip(prompts, counts, strict=True) if pair[1] > limit]


class LongPrompts:
    """Says once that the rest of a prompt is not read; diffusers does at each call, with all tokens of all prompts."""

    def __init__(self) -> None:
        self.said = False

    def look_at(self, tokenizer: Any, prompts: Sequence[str], limit: int) -> None:
        """Warns of a prompt with more than `limit` tokens, if it is the first."""
        with quiet():
            found = longer(tokenizer, prompts, limit)
        if not found or self.said:
            return
        self.said = True
        prompt, count = found[0]
        _LOGGER.warning(
            "the prompt %r has %d tokens, of which the text encoder reads the first %d, as in diffusers; this is said "
            "once",
            prompt if len(prompt) <= 60 else prompt[:57] + "...",
            count,
            limit,
        )
