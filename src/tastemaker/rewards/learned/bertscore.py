"""BERTScore's recall (Zhang et al. 2020, eq. 1), as the package bert-score computes it without idf and rescaling.

Not through a library: bert-score 0.3 is of 2023, and with today's transformers fails at models whose tokenizer has no
longest length, such as DDPO's (huggingface/evaluate#739, Tiiiger/bert_score#205); torchmetrics 1.9 leaves [CLS] and
[SEP] of the candidate out, which bert-score lets words be matched with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from tastemaker.errors import RewardError
from tastemaker.hub import hub_cause
from tastemaker.models.library_logging import quiet

LAYERS = {
    "bert-base-uncased": 9,
    "google-bert/bert-base-uncased": 9,
    "microsoft/deberta-base-mnli": 9,
    "microsoft/deberta-large-mnli": 18,
    "microsoft/deberta-xlarge-mnli": 40,
    "microsoft/deberta-v3-base": 9,
    "microsoft/deberta-v3-large": 12,
}
"""The layer that bert-score 0.3.13 uses for a model (utils.py, `model2layers`): the one closest to people's opinion."""
BATCH = 64


def recall(candidate: Tensor, seen: Tensor, reference: Tensor, weights: Tensor) -> Tensor:
    """Mean [B] over reference tokens of the greatest cosine to a candidate token.

    Embeddings [B,C,D] and [B,R,D]; `seen` [B,C] is True where a candidate's token stands and no padding, `weights`
    [B,R] are how much a reference's tokens count. bert-score takes 0 for padding's cosines, so that a batch's longest
    candidate matters where all cosines are negative; here it never does.
    """
    one, other = torch.nn.functional.normalize(candidate, dim=-1), torch.nn.functional.normalize(reference, dim=-1)
    cosines = torch.einsum("bcd,brd->bcr", one, other).masked_fill(~seen[:, :, None], -torch.inf)
    return (cosines.amax(dim=1) * weights).sum(dim=1) / weights.sum(dim=1)


def load_recall(model: str, layer: int | None = None) -> Callable[[Sequence[str], Sequence[str]], Tensor]:
    """A function of candidates and references, B texts each, to their recall [B], at most 1, on the CPU.

    A reference's special tokens do not count, but a candidate's can be matched, as in bert-score. Raises RewardError
    where the model cannot be loaded, or has no such layer.
    """
    layer = LAYERS.get(model) if layer is None else layer
    if layer is None:
        raise RewardError(
            f"which layer of {model!r} BERTScore uses is not known: give vlm.text_layer, or one of {', '.join(LAYERS)}"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(model)
            network: Any = AutoModel.from_pretrained(model, dtype=torch.float32)
    except Exception as error:  # transformers raises OSError, ValueError, ImportError and others
        reason = hub_cause(error, model) or " ".join(str(error).split())
        raise RewardError(f"BERTScore cannot load its model {model!r}: {reason[:500]}") from error
    depth = len(network.encoder.layer)
    if not 0 <= layer <= depth:
        raise RewardError(f"vlm.text_layer is {layer}, but {model!r} has {depth} layers")
    network.encoder.layer = network.encoder.layer[:layer]
    network.requires_grad_(False).eval().to(device)
    longest = min(tokenizer.model_max_length, network.config.max_position_embeddings)

    def embedded(texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [B,L,D], their tokens [B,L], and True [B,L] where no padding is."""
        given = tokenizer(
            [text.strip() for text in texts], padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(device)
        out = network(input_ids=given.input_ids, attention_mask=given.attention_mask)
        return out.last_hidden_state, given.input_ids, given.attention_mask.bool()

    @torch.no_grad()
    def score(candidates: Sequence[str], references: Sequence[str]) -> Tensor:
        scores = []
        for start in range(0, len(candidates), BATCH):
            candidate, _, seen = embedded(candidates[start : start + BATCH])
            reference, tokens, there = embedded(references[start : start + BATCH])
            special = (tokens == tokenizer.cls_token_id) | (tokens == tokenizer.sep_token_id)
            scores.append(recall(candidate, seen, reference, (there & ~special).float()).cpu())
        return torch.cat(scores)

    return score
