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
from tastemaker.rewards.vlm.answers import Answer, AnswerToken, Query
from tastemaker.rewards.vlm.settings import Vlm

T = TypeVar("T")

TOP_LOGPROBS = 20
"""Likeliest tokens considered at each position of an answer."""


class LocalModel:
    """Greedy answers, `settings.batch` images at once. Raises RewardError where one cannot be read."""

    def __init__(self, caller: str, model: str, settings: Vlm, logprobs: bool = False) -> None:
        """`caller` begins messages, as `the reward NAME`."""
        self.caller, self.settings, self.logprobs = caller, settings, logprobs
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            with quiet():
                # torchvision and Pillow resize differently, and a reward must not depend on what is installed.
                self.processor: Any = AutoProcessor.from_pretrained(model, backend="pil")
                self.model: Any = AutoModelForImageTextToText.from_pretrained(model, dtype="auto")
        except Exception as error:  # transformers raises OSError, ValueError, ImportError and others
            reason = hub_cause(error, model) or " ".join(str(error).split())
            raise RewardError(
                f"{caller} cannot load the vision-language model {model!r} (a folder or a name on the "
                f"Hugging Face hub; for one on a server give MODEL@http://HOST:PORT/v1): {reason[:500]}"
            ) from error
        self.model.requires_grad_(False).eval().to(self.device)
        if not getattr(self.processor, "chat_template", None):
            raise RewardError(
                f"{caller} cannot use {model!r}: it has no chat template, which says how an image and a "
                "question are written; take a version of the model that has one"
            )
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def __call__(
        self, queries: Sequence[Query], read: Callable[[Answer], T], received: Callable[[int, T], None] | None = None
    ) -> list[T]:
        size = self.settings.batch
        found = []
        for start in range(0, len(queries), size):
            for answer in self._answers(queries[start : start + size]):
                try:
                    found.append(read(answer))
                except ValueError as error:
                    # Asked again, the model would give the same answer.
                    raise RewardError(f"{self.caller} gave no answer: {error}") from None
                if received is not None:
                    received(len(found) - 1, found[-1])
        return found

    def cancel(self) -> None:
        """A call of a local model cannot be cancelled."""

    @torch.no_grad()
    def _answers(self, queries: Sequence[Query]) -> list[Answer]:
        chats = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": query.question}]}],
                add_generation_prompt=True,
            )
            for query in queries
        ]
        images = [[Image.open(io.BytesIO(query.image)).convert("RGB")] for query in queries]
        padding = len(queries) > 1
        given = self.processor(images=images, text=chats, padding=padding, return_tensors="pt").to(self.device)
        for name, value in given.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                given[name] = value.to(self.model.dtype)
        with quiet():  # it warns of sampling settings of the model that greedy answers do not use
            out = self.model.generate(
                **given, do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None,
                max_new_tokens=self.settings.tokens, return_dict_in_generate=True, output_logits=self.logprobs,
            )  # fmt: skip
        fresh = out.sequences[:, given["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(fresh, skip_special_tokens=True)
        if not self.logprobs:
            return [Answer(text) for text in texts]
        logprobs = torch.stack(out.logits, dim=1).float().log_softmax(dim=-1)
        return [Answer(text, self._tokens(*one)) for text, *one in zip(texts, fresh, logprobs, strict=True)]

    def _tokens(self, ids: Tensor, logprobs: Tensor) -> tuple[AnswerToken, ...]:
        """From the ids [L] of an answer's tokens, and the log-probabilities [L,V] of all tokens."""
        best = logprobs.topk(min(TOP_LOGPROBS, logprobs.shape[-1]), dim=-1)
        tokenizer = self.processor.tokenizer
        tokens = []
        for token, values, others in zip(ids.tolist(), best.values.tolist(), best.indices.tolist(), strict=True):
            texts = tokenizer.batch_decode([[other] for other in others])
            tokens.append(AnswerToken(tokenizer.decode([token]), tuple(zip(texts, values, strict=True))))
        return tuple(tokens)
