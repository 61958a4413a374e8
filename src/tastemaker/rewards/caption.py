"""A caption as a reward, all offline: the judge describes an image of the bundled model's world.

The mechanism of DDPO's reward (a model describes the image, and the description is compared with the prompt) where
nothing can be downloaded. As with judge-score, the judge is then no independent measure of the run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from tastemaker.drawings.scene import KINDS, NUMBERS, Request, Scene, Thing, Wanted, relation_of
from tastemaker.errors import RewardError, nearest
from tastemaker.rewards.base import RewardFunction, reward

_STOP = frozenset(("a", "an", "the", "of", "on", "and", "with", "background"))
"""Words without content, or that every caption has."""
_SINGULAR = {kind + "s": kind for kind in KINDS}


def caption_score(how: str) -> RewardFunction:
    """The reward `caption-score:HOW`, at most 1: recall of the prompt in the judge's caption of the image.

    `words`: the share of the prompt's words that are in the caption (`word_recall`), in [0,1]. `embeddings`: BERTScore
    recall with the bundled model's text encoder. Any prompt can be scored, but only the bundled model's words can be
    in a caption. Raises RewardError for another `how`.
    """
    if how not in COMPARISONS:
        raise RewardError(
            f"caption-score can compare by words or embeddings, not {how!r}: {nearest(how, list(COMPARISONS))}"
        )
    recall = COMPARISONS[how]()

    @reward()
    def caption_score(x: Tensor, prompts: Sequence[str]) -> Tensor:
        from tastemaker.drawings.judge import see

        seen = [captions(scene) for scene in see(x)]
        pairs = [(caption, prompt) for one, prompt in zip(seen, prompts, strict=True) for caption in one]
        values = recall([caption for caption, _ in pairs], [prompt for _, prompt in pairs])
        # Of equivalent captions, the one closest to the prompt's wording.
        return torch.stack([part.max() for part in values.split([len(one) for one in seen])])

    return caption_score


def captions(scene: Scene) -> tuple[str, ...]:
    """Descriptions of a scene in one sentence, all of them equally right.

    Two things are described from either side. Others are listed, those of one kind, colour and texture together.
    """
    ground = f" on a {scene.pattern} {scene.ground} background"
    if not scene.things:
        return (f"nothing{ground}",)
    if len(scene.things) == 2 and len({_looks(thing) for thing in scene.things}) == 2:
        one, other = scene.things
        return tuple(
            Request((_looks(a), _looks(b)), relation=relation_of(a, b)).caption() + ground
            for a, b in ((one, other), (other, one))
        )
    # A size is only informative for a thing that is alone.
    alone = len(scene.things) == 1
    counts = Counter(_looks(thing, size=alone) for thing in scene.things)
    return (" and ".join(_counted(wanted, count) for wanted, count in counts.items()) + ground,)


def word_recall(caption: str, prompt: str) -> float:
    """Share in [0,1] of the prompt's words that the caption has, as often as the prompt; plurals are their singulars.

    Articles, `of`, `on`, `and`, `with` and `background` do not count; 1 for a prompt that has no other words.
    """
    wanted, there = _words(prompt), _words(caption)
    return (wanted & there).total() / wanted.total() if wanted else 1.0


def _words(text: str) -> Counter[str]:
    words: list[str] = re.findall(r"\w+", text.lower())
    return Counter(_SINGULAR.get(word, word) for word in words if word not in _STOP)


def _looks(thing: Thing, size: bool = False) -> Wanted:
    return Wanted(thing.kind, thing.colour, thing.texture, thing.size if size else None)


def _counted(wanted: Wanted, count: int) -> str:
    if count in NUMBERS or count == 1:
        return Request((wanted,), count).caption()
    return f"many {wanted.phrase(plural=True)}"


def _by_words() -> Callable[[Sequence[str], Sequence[str]], Tensor]:
    return lambda texts, prompts: torch.tensor([word_recall(*pair) for pair in zip(texts, prompts, strict=True)])


@cache
def _by_embeddings() -> Callable[[Sequence[str], Sequence[str]], Tensor]:
    from transformers import CLIPTextModel, CLIPTokenizer

    from tastemaker.models.bundled import bundled_pipeline
    from tastemaker.models.library_logging import quiet
    from tastemaker.rewards.learned.bertscore import recall

    with quiet():
        tokenizer = CLIPTokenizer.from_pretrained(bundled_pipeline() / "tokenizer")
        encoder = CLIPTextModel.from_pretrained(bundled_pipeline() / "text_encoder", dtype=torch.float32).eval()

    def embedded(texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        given = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        special = (given.input_ids == tokenizer.bos_token_id) | (given.input_ids == tokenizer.eos_token_id)
        return encoder(given.input_ids).last_hidden_state, given.attention_mask.bool(), ~special

    @torch.no_grad()
    def score(texts: Sequence[str], prompts: Sequence[str]) -> Tensor:
        candidate, seen, _ = embedded(texts)
        reference, _, words = embedded(prompts)
        return recall(candidate, seen, reference, words.float())

    return score


COMPARISONS: dict[str, Callable[[], Callable[[Sequence[str], Sequence[str]], Tensor]]] = {
    "words": _by_words,
    "embeddings": _by_embeddings,
}
