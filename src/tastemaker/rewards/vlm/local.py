"""A vision-language model in the process, through transformers: LLaVA and others that take an image and a text."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from tastemaker.errors import RewardError
from tastemaker.hub import hub_cause
from tastemaker.models.library_logging import quiet
from tastemaker.rewards.vlm.answers import Answer, Query, Word
from tastemaker.rewards.vlm.settings import Vlm

T = TypeVar("T")

CHANCES = 20
"""Likeliest tokens looked at in each place of an answer."""


class Local:
    """Asks for answers, greedy, `settings.batch` images at once. Raises RewardError where one cannot be read."""

    def __init__(self, reward: str, model: str, settings: Vlm, logprobs: bool = False) -> None:
        self.reward, self.settings, self.logprobs = reward, settings, logprobs
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            with quiet():
                # torchvision resizes otherwise than Pillow does, and a reward must not depend on what is installed.
                self.processor: Any = AutoProcessor.from_pretrained(model, backend="pil")
                self.model: Any = AutoModelForImageTextToText.from_pretrained(model, dtype="auto")
        except Exception as error:  # transformers raises OSError, ValueError, ImportError and others
            reason = hub_cause(error, model) or " ".join(str(error).split())
            raise RewardError(
                f"the reward {reward} cannot load the vision-language model {model!r} (a folder or a name on the "
                f"Hugging Face hub; for one on a server give MODEL@http://HOST:PORT/v1): {reason[:500]}"
            ) from error
        self.model.requires_grad_(False).eval().to(self.device)
        if not getattr(self.processor, "chat_template", None):
            raise RewardError(
                f"the reward {reward} cannot talk to {model!r}: it has no chat template, which says how an image and "
                "a question are written; take a version of the model that has one"
            )
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def __call__(self, queries: Sequence[Query], read: Callable[[Answer], T]) -> list[T]:
        size = self.settings.batch
        found = []
        for start in range(0, len(queries), size):
            for answer in self._answers(queries[start : start + size]):
                try:
                    found.append(read(answer))
                except ValueError as error:
                    # ScoreRequest again it would say the same.
                    raise RewardError(f"the reward {self.reward} gave no number: {error}") from None
        return found

    def cancel(self) -> None:
        """A model in the process is waited for."""

    @torch.no_grad()
    def _answers(self, queries: Sequence[Query]) -> list[Answer]:
        texts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": query.question}]}],
                add_generation_prompt=True,
            )
            for query in queries
        ]
        images = [[Image.open(io.BytesIO(query.image)).convert("RGB")] for query in queries]
        padding = len(queries) > 1
        given = self.processor(images=images, text=texts, padding=padding, return_tensors="pt").to(self.device)
        for name, value in given.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                given[name] = value.to(self.model.dtype)
        with quiet():  # it notes sampling settings of the model's that greedy answers do not use
            out = self.model.generate(
                **given, do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None,
                max_new_tokens=self.settings.tokens, return_dict_in_generate=True, output_logits=self.logprobs,
            )  # fmt: skip
        fresh = out.sequences[:, given["input_ids"].shape[1] :]
        said = self.processor.batch_decode(fresh, skip_special_tokens=True)
        if not self.logprobs:
            return [Answer(text) for text in said]
        chances = torch.stack(out.logits, dim=1).float().log_softmax(dim=-1)
        return [Answer(text, self._words(*one)) for text, *one in zip(said, fresh, chances, strict=True)]

    def _words(self, ids: Tensor, chances: Tensor) -> tuple[Word, ...]:
        """Tokens [L] of an answer, and the logarithms of all tokens' chances [L,V]."""
        best = chances.topk(min(CHANCES, chances.shape[-1]), dim=-1)
        tokenizer = self.processor.tokenizer
        words = []
        for token, values, others in zip(ids.tolist(), best.values.tolist(), best.indices.tolist(), strict=True):
            texts = tokenizer.batch_decode([[other] for other in others])
            words.append(Word(tokenizer.decode([token]), tuple(zip(texts, values, strict=True))))
        return tuple(words)
