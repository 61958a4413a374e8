"""The judge's confidence as a reward: how surely an image of the bundled model's world shows its prompt.

The judge is the independent witness of alignment. A run that trains on it has no witness left; it stands in for an
alignment reward where methods are compared, and is in no preset but theirs.
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
    """Mean confidence [B] in [0,1] in what each prompt asks for: objects, colours, textures, number, relation, ground.

    Raises RewardError for a prompt that is not of the bundled model's grammar. Sizes are not scored.
    """
    requests = [parse(prompt) for prompt in prompts]
    unknown = [prompt for prompt, request in zip(prompts, requests, strict=True) if request is None]
    if unknown:
        raise RewardError(
            f"judge-score does not know the prompt {unknown[0]!r}: it reads those of the bundled model "
            "(`tastemaker ls prompts`)"
        )
    chances = look(x)
    scores = [
        confidence(request, {name: values[index] for name, values in chances.items()})
        for index, request in enumerate(requests)
        if request is not None
    ]
    return torch.stack(scores)


def look(x: Tensor) -> dict[str, Tensor]:
    """What the judge gives for images [B,3,H,W] in [0,1], on the CPU, with their graph.

    Chances of kind [B,8,16,16], each on its own, and of colour [B,8,16,16] and texture [B,2,16,16] in each cell; of
    ground [B,8] and pattern [B,3].
    """
    from tastemaker.drawings.judge import SIDE, load_judge

    out = load_judge()(F.interpolate(x.float().cpu(), (SIDE, SIDE), mode="area"))
    return {
        "kind": out["kind"].sigmoid(), "colour": out["colour"].softmax(1), "texture": out["texture"].softmax(1),
        "ground": out["ground"].softmax(1), "pattern": out["pattern"].softmax(1),
    }  # fmt: skip


def confidence(request: Request, chances: dict[str, Tensor]) -> Tensor:
    """Mean over what is asked for, from one image's chances: kind, colour, texture [_,16,16], ground, pattern [_]."""
    maps = [present(wanted, chances) for wanted in request.things]
    peaks = _peaks(chances["kind"].amax(0))
    count = len(request.things) * request.count
    parts = [_number(peaks, count)]
    if request.template == "pair":
        found, related = _placed(maps[0], maps[1], request.relation)
        parts += [found] if request.relation is None else [found, related]
    else:
        parts.append(_peaks(maps[0])[:count].mean())
    if request.ground:
        parts.append(chances["ground"][_COLOURS.index(request.ground)])
    if request.pattern:
        parts.append(chances["pattern"][PATTERNS.index(request.pattern)])
    return torch.stack(parts).mean()


def present(wanted: Wanted, chances: dict[str, Tensor]) -> Tensor:
    """[16,16] chance that such a thing is centred in each cell."""
    here = chances["kind"][KINDS.index(wanted.kind)]
    if wanted.colour:
        here = here * chances["colour"][_COLOURS.index(wanted.colour)]
    return here * chances["texture"][TEXTURES.index(wanted.texture)] if wanted.texture else here


def _peaks(values: Tensor, least: int = 8) -> Tensor:
    """The largest values of neighbourhoods of 5x5 cells, falling, at least `least` of them."""
    peak = values == F.max_pool2d(values[None], 5, 1, 2)[0]
    return F.pad(values[peak].sort(descending=True).values, (0, least))[: max(least, int(peak.sum()))]


def _number(peaks: Tensor, count: int) -> Tensor:
    """Chance that there are `count` things: the last of them is one, and the next peak is none."""
    return peaks[count - 1] * (1 - peaks[count])


def _placed(first: Tensor, second: Tensor, relation: Relation | None) -> tuple[Tensor, Tensor]:
    """Chance of both things, wherever they are, and of both in their relation, over all pairs of different cells."""
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
