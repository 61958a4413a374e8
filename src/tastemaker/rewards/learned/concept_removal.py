"""Removing a concept as a reward: 1 - c, with c a detector's confidence that the image shows it (AlignProp §5, iii).

The paper asks for "{concept} and books" and rewards the absence of books. `concept-removal` is its reward, with OwlViT
as detector; `judge-removal` is the same on the bundled model's drawings, with the judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tastemaker.drawings.scene import KINDS, Wanted, parse
from tastemaker.errors import RewardError
from tastemaker.hub import hub_cause
from tastemaker.rewards.base import RewardFunction, reward
from tastemaker.rewards.judge import present, probabilities
from tastemaker.rewards.learned.device import device_for
from tastemaker.rewards.learned.preprocess import Preprocess

DETECTOR = "google/owlvit-base-patch32"
NAMED = {"first-named": 0, "last-named": 1}
"""Objects that each prompt names itself, by their position in it."""


def concept_removal(argument: str) -> RewardFunction:
    """The reward `concept-removal:CONCEPT[@MODEL]`: 1 - c [B] in [0,1], c the confidence in the surest of all boxes.

    CONCEPT is what the detector is asked for ("books"), MODEL an OwlViT or OWLv2 checkpoint of the Hugging Face hub or
    a folder (google/owlvit-base-patch32 where it is left out). The paper does not say how boxes are reduced to one
    number. Raises RewardError where the detector does not load, or the concept is longer than it can read.
    """
    concept, _, model = argument.partition("@")
    if not concept.strip():
        raise RewardError(
            f"the reward concept-removal:{argument} names no concept: give one as in concept-removal:books"
        )
    network, tokens = _detector(model or DETECTOR, concept.strip())

    @reward(differentiable=True)
    def concept_removal(x: Tensor, prompts: Sequence[str]) -> Tensor:
        device = device_for(x)
        network.to(device)
        ids = tokens.to(device).expand(len(x), -1)
        logits = network(pixel_values=_pixels(x.to(device).float(), network.config), input_ids=ids).logits
        return (1 - logits[..., 0].amax(dim=1).sigmoid()).to(x.device)

    return concept_removal


def _detector(model: str, concept: str) -> tuple[Any, Tensor]:
    """The network, and the concept's tokens [1,L] as it reads them."""
    from transformers import AutoConfig, CLIPTokenizer, Owlv2ForObjectDetection, OwlViTForObjectDetection

    from tastemaker.models.library_logging import quiet

    kinds = {"owlvit": OwlViTForObjectDetection, "owlv2": Owlv2ForObjectDetection}
    try:
        with quiet():
            config: Any = AutoConfig.from_pretrained(model)
            if config.model_type not in kinds:
                raise RewardError(
                    f"the reward concept-removal needs an OwlViT or OWLv2 detector, but {model} is a "
                    f"{config.model_type} model: give one as in concept-removal:{concept}@{DETECTOR}"
                )
            network: Any = kinds[config.model_type].from_pretrained(model)
            tokenizer = CLIPTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = hub_cause(error, model) or " ".join(str(error).split())
        raise RewardError(f"the reward concept-removal cannot load its detector {model}: {reason}") from error
    length = config.text_config.max_position_embeddings
    tokens = tokenizer(concept, padding="max_length", max_length=length, return_tensors="pt")["input_ids"]
    if tokens.shape[1] > length:
        raise RewardError(
            f"the concept {concept!r} is {tokens.shape[1]} tokens long, but {model} reads no more than {length}: "
            "name it in fewer words"
        )
    return network.float().eval().requires_grad_(False), tokens


def _pixels(x: Tensor, config: Any) -> Tensor:
    """[B,3,S,S] as the detector was trained on: OwlViT stretches an image to a square, OWLv2 pads it to one first."""
    side, height, width = config.vision_config.image_size, *x.shape[-2:]
    if config.model_type == "owlvit":
        return Preprocess((side, side), fit="stretch")(x)
    longest = max(height, width)
    square = F.pad(x, (0, longest - width, 0, longest - height))
    return Preprocess((side, side), fit="stretch", resampling="bilinear")(square)


def judge_removal(argument: str) -> RewardFunction:
    """The reward `judge-removal:OBJECT`: 1 - c [B] in [0,1], c the judge's confidence in its surest such object.

    OBJECT is of the bundled model's world: a kind of object ("circle"), or one with a colour or texture ("blue
    circle"). With `first-named` or `last-named` it is one of the two objects that each prompt names, as it names it.
    Raises RewardError for other objects, and with these two for prompts that do not name two.
    """
    fixed = None if argument in NAMED else _object(argument)

    @reward(differentiable=True)
    def judge_removal(x: Tensor, prompts: Sequence[str]) -> Tensor:
        wanted = [fixed or _named(prompt, argument) for prompt in prompts]
        probs = probabilities(x)
        parts = [
            present(one, {name: values[index] for name, values in probs.items()}).amax()
            for index, one in enumerate(wanted)
        ]
        return (1 - torch.stack(parts)).to(x.device)

    return judge_removal


def _object(argument: str) -> Wanted:
    request = parse(argument)
    plain = request is not None and request.template == "single" and not (request.ground or request.pattern)
    if request is None or not plain or request.things[0].size:
        raise RewardError(
            f"the reward judge-removal:{argument} names no object that the judge could probabilities for: give a kind "
            f"({', '.join(KINDS)}), with a colour or texture if it matters, or {' or '.join(NAMED)}"
        )
    return request.things[0]


def _named(prompt: str, which: str) -> Wanted:
    request = parse(prompt)
    if request is None or request.template != "pair":
        raise RewardError(
            f"the reward judge-removal:{which} needs prompts that name two objects, as those of bundled-and, but "
            f"{prompt!r} does not: name the object itself, as in judge-removal:circle"
        )
    return request.things[NAMED[which]]
