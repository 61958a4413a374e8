"""Legible text as a reward: what an OCR reads in an image against what the prompt has in quotation marks.

Flow-GRPO's text rendering reward (flow_grpo/ocr.py, there with PaddleOCR), read by RapidOCR, which runs PaddleOCR's
networks on a CPU and brings them along.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tastemaker.errors import RewardError
from tastemaker.rewards.base import reward
from tastemaker.rewards.jpeg import to_bytes

_QUOTED = re.compile(r'"([^"]*)"|“([^”]*)”')


@reward()
def ocr(x: Tensor, prompts: Sequence[str]) -> Tensor:
    """How well the first text in quotation marks of each prompt can be read in its image: [B] in [0,1].

    1 - min(d, n) / n with d the edit distance between what is read and the n letters that are wanted, and 1 where these
    are part of what is read; spaces and capitals do not count. Raises RewardError for a prompt without such a text, and
    where the extra `ocr` is not installed.
    """
    wanted = [quoted(prompt) for prompt in prompts]
    read = _reader()
    found = [read(Image.fromarray(image)) for image in to_bytes(x).numpy()]
    return torch.tensor([legibility(*pair) for pair in zip(found, wanted, strict=True)])


def quoted(prompt: str) -> str:
    """The text that an image is to show: what stands in the prompt's first pair of quotation marks, "..." or “...”.

    Raises RewardError where there is none.
    """
    match = _QUOTED.search(prompt)
    text = (match[1] or match[2] or "") if match else ""
    if not text.strip():
        raise RewardError(
            f"the reward ocr needs prompts with the text to be shown in quotation marks, but {prompt!r} has none: give "
            'prompts as in: a shop with a sign that says "Fresh Bread"'
        )
    return text


def legibility(found: str, wanted: str) -> float:
    """The reward of one image, in which `found` was read."""
    from rapidfuzz.distance.Levenshtein import distance

    found, wanted = _letters(found), _letters(wanted)
    return 1.0 if wanted in found else 1 - min(distance(found, wanted), len(wanted)) / len(wanted)


def _letters(text: str) -> str:
    return "".join(text.split()).lower()


@cache
def _reader() -> Callable[[Image.Image], str]:
    """Reads an image: its lines, in order, as one text."""
    try:
        import onnxruntime  # noqa: F401
        import rapidfuzz  # noqa: F401
        from rapidocr import RapidOCR
    except ImportError as error:
        raise RewardError(
            f"the reward ocr needs packages that are not installed ({error}): pip install 'tastemaker[ocr]'"
        ) from error
    threads = {"EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads()}
    # As Flow-GRPO has it, text that stands on its head is not turned round.
    engine: Any = RapidOCR(params={"Global.log_level": "error", "Global.use_cls": False, **threads})

    def read(image: Image.Image) -> str:
        return "".join(engine(image).txts or ())

    return read
