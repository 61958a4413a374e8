"""The choice nearest to an answer in words of its own, by sentence embeddings (TIFA, tifascore/mc_sbert.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from tastemaker.errors import RewardError
from tastemaker.hub import hub_cause
from tastemaker.models.library_logging import quiet

Nearest = Callable[[str, Sequence[str]], str]


def load_nearest(model: str) -> Nearest:
    """A function of an answer and choices to the choice with the greatest cosine of embeddings, on the CPU.

    An embedding is the mean over a text's tokens of the last hidden states. Raises RewardError where the model, a
    folder or a name on the hub, cannot be loaded.
    """
    try:
        with quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(model)
            network: Any = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    except Exception as error:  # transformers raises OSError, ValueError, ImportError and others
        reason = hub_cause(error, model) or " ".join(str(error).split())
        raise RewardError(
            f"the sentence encoder {model!r} cannot be loaded (--text-model, a folder or a name on the Hugging Face "
            f"hub): {reason[:500]}"
        ) from error

    @torch.no_grad()
    def nearest(answer: str, choices: Sequence[str]) -> str:
        given = tokenizer([answer, *choices], padding=True, truncation=True, return_tensors="pt")
        mask: Tensor = given["attention_mask"][..., None]
        states: Tensor = network(**given).last_hidden_state
        embedded = torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)
        return choices[int((embedded[1:] @ embedded[0]).argmax())]

    return nearest
