"""Which pictures a round draws, in which order they are trained on, and which process samples which of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tastemaker import noise
from tastemaker.prompts import PromptSet
from tastemaker.types import Draw, Rows

EVALUATION = 2**40
"""The round number of evaluation pictures: their noise is that of no training round."""
_PROMPTS, _ORDER, _STEPS = 0, 1, 2**41


def draw_round(prompts: PromptSet, seed: int, round: int, samples: int, per_prompt: int) -> Draw:
    """`samples` pictures: prompts drawn by weight, `per_prompt` of each, in shuffled order.

    The draw is systematic: every prompt comes as often as its weight says, rounded up or down at random so that
    its expectation is exact. A list as long as the draw comes once and whole, and a longer one without repeats.
    Independent draws would let rounds differ in their prompts, and so in their mean reward, by chance alone.

    The order is that of training: an update takes the next pictures of it. It is settled here, before sampling,
    so that each process can sample just the pictures that it will train on, whatever the number of processes.
    """
    rng, count = noise.choices(seed, round, _PROMPTS), samples // per_prompt
    shuffled = rng.permutation(len(prompts))
    edges = np.cumsum(np.asarray(prompts.probabilities)[shuffled])
    chosen = shuffled[np.searchsorted(edges / edges[-1], (rng.random() + np.arange(count)) / count)]
    order = noise.choices(seed, round, _ORDER).permutation(samples)
    drawn: dict[int, int] = {}
    rows: list[tuple[int, int]] = []
    for prompt in np.repeat(chosen, per_prompt).tolist():
        rows.append((prompt, drawn.get(prompt, 0)))
        drawn[prompt] = drawn.get(prompt, 0) + 1
    ordered = [rows[place] for place in order.tolist()]
    return _draw(prompts, seed, round, ordered)


def draw_evaluation(prompts: PromptSet, seed: int, count: int, per_prompt: int) -> Draw:
    """The same pictures at every evaluation: `per_prompt` seeds of `count` prompts spread over the list."""
    rows = [(prompt, sample) for prompt in prompts.spread(count) for sample in range(per_prompt)]
    return _draw(prompts, seed, EVALUATION, rows)


def _draw(prompts: PromptSet, seed: int, round: int, rows: Sequence[tuple[int, int]]) -> Draw:
    return Draw(
        seed, round, tuple(prompts.prompts[p] for p, _ in rows), tuple(p for p, _ in rows), tuple(s for _, s in rows)
    )


def share(samples: int, updates: int, rank: int, world: int) -> list[int]:
    """Places in a round's order that process `rank` of `world` samples: its part of every update, in order."""
    size = samples // updates
    part = size // world
    return [update * size + rank * part + place for update in range(updates) for place in range(part)]


def update_rows(rows: Rows, pictures: range, kept: int, draw: Draw, fraction: float) -> Rows:
    """The rows of one update: those of `pictures`, all their steps or a random share of each one's.

    Which steps a picture trains depends on the picture alone, not on the process that has it.
    """
    device = rows.picture.device
    if fraction >= 1:
        return rows.select(slice(pictures.start * kept, pictures.stop * kept))
    count = max(1, round(fraction * kept))
    places: list[Tensor] = []
    for picture in pictures:
        rng = noise.generator(draw.seed, draw.round, _STEPS, draw.sample_index[picture], draw.prompt_index[picture])
        chosen = np.sort(rng.choice(kept, size=count, replace=False))
        places.append(torch.as_tensor(picture * kept + chosen, device=device))
    return rows.select(torch.cat(places))
