"""Which images a round draws, in which order they are trained on, and which process samples which of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tastemaker import noise
from tastemaker.config.schema import Optimizer
from tastemaker.data.prompt_set import PromptSet
from tastemaker.types import Draw, Rows

EVALUATION = 2**40
"""The round number of evaluation images: their noise is that of no training round."""
UNSEEN = EVALUATION + 1
"""That of images of prompts which are not trained on."""
_PROMPTS, _ORDER, _PASSES, _STEPS, _STATES, _IMAGES, _VALUES = 0, 1, 2, 2**41, 2**10, 2**20, 2**21


def draw_round(
    prompts: PromptSet, seed: int, round: int, samples: int, per_prompt: int, branches: int = 1, group_size: int = 1
) -> Draw:
    """`samples` images: prompts drawn by weight, `per_prompt` of each, in shuffled order.

    Each root has `branches` images, which follow each other, as do any `group_size` images of a prompt.

    The draw is systematic: every prompt comes as often as its weight says, rounded up or down at random so that
    its expectation is exact. A list as long as the draw comes once and whole, and a longer one without repeats.
    Independent draws would let rounds differ in their prompts, and so in their mean reward, by chance alone.

    The order is that of training: an update takes the next images of it. It is settled here, before sampling,
    so that each process can sample just the images that it will train on, whatever the number of processes.
    """
    rng, count = noise.choices(seed, round, _PROMPTS), samples // per_prompt
    shuffled = rng.permutation(len(prompts))
    edges = np.cumsum(np.asarray(prompts.probabilities)[shuffled])
    chosen = shuffled[np.searchsorted(edges / edges[-1], (rng.random() + np.arange(count)) / count)]
    order = noise.choices(seed, round, _ORDER).permutation(samples // group_size)
    drawn: dict[int, int] = {}
    rows: list[tuple[int, int]] = []
    for prompt in np.repeat(chosen, per_prompt).tolist():
        rows.append((prompt, drawn.get(prompt, 0)))
        drawn[prompt] = drawn.get(prompt, 0) + 1
    ordered = [row for group in order.tolist() for row in rows[group * group_size : (group + 1) * group_size]]
    draw = _draw(prompts, seed, round, ordered)
    return draw if branches == 1 else replace(draw, root_index=tuple(s - s % branches for s in draw.sample_index))


def draw_pairs(captions: Sequence[str], seed: int, round: int, samples: int) -> Draw:
    """`samples` of N given pairs, by their captions: none comes again before all have come, over the whole run.

    A prompt index is that of the pair among the N, and a sample index counts how often it came before in this round.
    """
    chosen = in_turn(len(captions), seed, (round - 1) * samples, samples)
    times: dict[int, int] = {}
    rows: list[tuple[int, int]] = []
    for pair in chosen:
        rows.append((pair, times.get(pair, 0)))
        times[pair] = times.get(pair, 0) + 1
    prompts = tuple(captions[pair] for pair, _ in rows)
    return Draw(seed, round, prompts, tuple(pair for pair, _ in rows), tuple(count for _, count in rows))


def in_turn(population: int, seed: int, start: int, count: int, purpose: int = _PASSES) -> list[int]:
    """The items start to start + count of an endless row of shuffles of range(population), one after the other."""
    found: list[int] = []
    while len(found) < count:
        passes, first = divmod(start + len(found), population)
        order = noise.choices(seed, passes, purpose).permutation(population)
        found += order[first : first + count - len(found)].tolist()
    return found


def draw_evaluation(prompts: PromptSet, seed: int, count: int, per_prompt: int, round: int = EVALUATION) -> Draw:
    """The same images at every evaluation: `per_prompt` seeds of `count` prompts spread over the list."""
    rows = [(prompt, sample) for prompt in prompts.spread(count) for sample in range(per_prompt)]
    return _draw(prompts, seed, round, rows)


def _draw(prompts: PromptSet, seed: int, round: int, rows: Sequence[tuple[int, int]]) -> Draw:
    return Draw(
        seed, round, tuple(prompts.prompts[p] for p, _ in rows), tuple(p for p, _ in rows), tuple(s for _, s in rows)
    )


@dataclass(frozen=True)
class RoundPart:
    """The images of a round, and those of them that this process samples and trains on."""

    draw: Draw
    """All B images of the round, in the order of training."""
    indices: list[int]
    """Those of this process."""

    @cached_property
    def own(self) -> Draw:
        """The images of this process."""
        return self.draw.select(self.indices)


def share(samples: int, slices: int, rank: int, world: int) -> list[int]:
    """Indices in a round's order that process `rank` of `world` samples: its part of every slice, in order."""
    size = samples // slices
    part = size // world
    return [number * size + rank * part + index for number in range(slices) for index in range(part)]


def planned_updates(options: Optimizer, selected: Tensor) -> int:
    """Optimizer steps of a round, over all its inner epochs, from which of its images are selected, [B] bool."""
    if options.images_per_update is None:
        return options.updates * options.inner_epochs
    return options.inner_epochs * int(selected.sum()) // options.images_per_update


def assigned(rows: Rows, part: RoundPart, options: Optimizer, epoch: int, selected: Tensor | None = None) -> Tensor:
    """[N] in which of the round's updates each row is trained in its pass number `epoch`, -1 for none.

    `selected` [B] bool says which images of the round are learned from (all where it is None). It depends on a row's
    index in the round alone, not on the process that has it.

    With `images_per_update` the selected images come in a new order in each pass, and the passes one after the other;
    updates are pieces of that row, one of which may hold the end of a pass and the beginning of the next.
    """
    draw, samples, kept = part.draw, len(part.draw), max(1, rows.rollout.kept)
    index, before = torch.as_tensor(part.indices)[rows.image.cpu()], epoch * options.updates
    if options.images_per_update is not None:
        chosen = torch.ones(samples, dtype=torch.bool) if selected is None else selected.cpu()
        images = chosen.nonzero().flatten()
        order = noise.choices(draw.seed, draw.round, _IMAGES + epoch).permutation(len(images))
        rank = torch.full((samples,), -1)
        rank[images[torch.from_numpy(order)]] = torch.arange(len(images))
        update = (epoch * len(images) + rank[index]) // options.images_per_update
        update = torch.where((rank[index] >= 0) & (update < planned_updates(options, chosen)), update, -1)
    elif options.minibatch == "states":
        rank = np.argsort(noise.choices(draw.seed, draw.round, _STATES + epoch).permutation(samples * kept))
        rank = torch.from_numpy(rank)[index * kept + rows.step_index.cpu()]
        update = before + rank * options.updates // (samples * kept)
    else:
        update = before + index // (samples // options.updates)
    if options.timestep_fraction < 1:
        trained = torch.zeros(len(part.indices), kept, dtype=torch.bool)
        count = max(1, round(options.timestep_fraction * kept))
        for image, (sample, prompt) in enumerate(zip(part.own.sample_index, part.own.prompt_index, strict=True)):
            rng = noise.generator(draw.seed, draw.round, _STEPS, sample, prompt)
            trained[image, torch.from_numpy(rng.choice(kept, size=count, replace=False))] = True
        update = torch.where(trained[rows.image.cpu(), rows.step_index.cpu()], update, -1)
    return update.to(rows.image.device)


def value_states(seed: int, round: int, states: int, batch: int, batches: int) -> list[list[int]]:
    """`batches` lists of `batch` of a round's states, 0 to states - 1: none again before all have come."""
    rng, row = noise.choices(seed, round, _VALUES), []
    while len(row) < batch * batches:
        row += rng.permutation(states).tolist()
    return [row[number * batch : (number + 1) * batch] for number in range(batches)]
