"""The judge's confidence as a reward: how surely an image of the bundled model's world shows its prompt.

The judge measures alignment independently of the reward, which it no longer does in a run that trains on this. It is
used as an alignment reward where methods are compared, and only in their presets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tastemaker.drawings.scene import COLOURS, KINDS, PATTERNS, TEXTURES, Relation, Request, Wanted, parse
from tastemaker.errors import RewardError
from tastemaker.rewards.base import reward

_COLOURS = tuple(COLOURS)


@reward()
def judge_score(x: Tensor, prompts: Sequence[str]) -> Tensor:
    """Mean confidence [B] in [0,1] in what each prompt requests: objects, colours, textures, number, relation, ground.

    Raises RewardError for a prompt that is not of the bundled model's grammar. Sizes are not scored.
    """
    requests = [parse(prompt) for prompt in prompts]
    unknown = [prompt for prompt, request in zip(prompts, requests, strict=True) if request is None]
    if unknown:
        raise RewardError(
            f"judge-score does not know the prompt {unknown[0]!r}: it reads those of the bundled model "
            "(`tastemaker ls prompts`)"
        )
    probs = probabilities(x)
    scores = [
        confidence(request, {name: values[index] for name, values in probs.items()})
        for index, request in enumerate(requests)
        if request is not None
    ]
    return torch.stack(scores)


def probabilities(x: Tensor) -> dict[str, Tensor]:
    """The judge's probabilities for images [B,3,H,W] in [0,1], on the CPU, with their graph.

    Of kind [B,8,16,16], each independent, and of colour [B,8,16,16] and texture [B,2,16,16] in each cell; of
    ground [B,8] and pattern [B,3].
    """
    from tastemaker.drawings.judge import SIDE, load_judge

    out = load_judge()(F.interpolate(x.float().cpu(), (SIDE, SIDE), mode="area"))
    return {
        "kind": out["kind"].sigmoid(), "colour": out["colour"].softmax(1), "texture": out["texture"].softmax(1),
        "ground": out["ground"].softmax(1), "pattern": out["pattern"].softmax(1),
    }  # fmt: skip


def confidence(request: Request, probs: dict[str, Tensor]) -> Tensor:
    """Mean over what the prompt requests, from one image's probabilities (see `probabilities`, without the batch)."""
    maps = [present(wanted, probs) for wanted in request.things]
    peaks = _peaks(probs["kind"].amax(0))
    count = len(request.things) * request.count
    parts = [_number(peaks, count)]
    if request.template == "pair":
        found, related = _placed(maps[0], maps[1], request.relation)
        parts += [found] if request.relation is None else [found, related]
    else:
        parts.append(_peaks(maps[0])[:count].mean())
    if request.ground:
        parts.append(probs["ground"][_COLOURS.index(request.ground)])
    if request.pattern:
        parts.append(probs["pattern"][PATTERNS.index(request.pattern)])
    return torch.stack(parts).mean()


def present(wanted: Wanted, probs: dict[str, Tensor]) -> Tensor:
    """[16,16] probability that such a thing is centred in each cell."""
    here = probs["kind"][KINDS.index(wanted.kind)]
    if wanted.colour:
        here = here * probs["colour"][_COLOURS.index(wanted.colour)]
    return here * probs["texture"][TEXTURES.index(wanted.texture)] if wanted.texture else here


def _peaks(values: Tensor, least: int = 8) -> Tensor:
    """The local maxima in neighbourhoods of 5x5 cells, in descending order, padded with 0 to at least `least`."""
    peak = values == F.max_pool2d(values[None], 5, 1, 2)[0]
    return F.pad(values[peak].sort(descending=True).values, (0, least))[: max(least, int(peak.sum()))]


def _number(peaks: Tensor, count: int) -> Tensor:
    """Probability of `count` things: that the peak of this rank is a thing, and the next one is not."""
    return peaks[count - 1] * (1 - peaks[count])


def _placed(first: Tensor, second: Tensor, relation: Relation | None) -> tuple[Tensor, Tensor]:
    """Probability of both things anywhere, and of both in their relation: maxima over pairs of different cells."""
    rows, columns = torch.meshgrid(torch.arange(len(first)), torch.arange(len(first)), indexing="ij")
    dx = columns.flatten()[None, :] - columns.flatten()[:, None]
    dy = rows.flatten()[None, :] - rows.flatten()[:, None]
    both = first.flatten()[:, None] * second.flatten()[None, :] * ((dx != 0) | (dy != 0))
    # As drawings.scene.relation_of: along the axis on which they are further apart.
    along = dx.abs() >= dy.abs()
    relations = {
        "on the left of": along & (dx > 0), "on the right of": along & (dx <= 0),
        "above": ~along & (dy > 0), "below": ~along & (dy <= 0),
    }  # fmt: skip
    return both.max(), (both * relations[relation]).max() if relation else both.max()
