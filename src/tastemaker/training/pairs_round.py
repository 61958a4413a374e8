"""The round of algorithms that learn from given pairs of images: draw, read, encode, update."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from tastemaker.data.pairs import PairSet
from tastemaker.diffusion.model import image_size
from tastemaker.diffusion.sampler import batches
from tastemaker.training.draws import RoundPart, draw_pairs, share
from tastemaker.training.measurements import finished_round
from tastemaker.training.session import Session
from tastemaker.training.update import update
from tastemaker.types import Draw, Rollout


def given_round(session: Session, pairs: PairSet) -> dict[str, Any]:
    """One round on `sampling.samples` given pairs; returns its record for metrics.jsonl, which has no reward."""
    config, accelerator = session.config, session.accelerator
    number, samples = session.state.round + 1, config.sampling.samples
    draw = draw_pairs(pairs.prompts, config.seed, number, samples)
    part = RoundPart(
        draw, share(samples, config.optimizer.updates, accelerator.process_index, accelerator.num_processes)
    )
    with session.phase("read", 2 * len(part.own)):
        rollout = encoded(session, pairs, part.own)
    session.stop.check()
    with session.phase("prepare", 1), session.inference(), torch.no_grad():
        rows = config.algorithm.prepare(session.task, rollout)
    with session.phase("train", len(rows) * config.optimizer.inner_epochs):
        metrics = update(session, rows, part)
    return finished_round(session, 0, {"passes": number * samples / len(pairs)}, metrics)


@torch.no_grad()
def encoded(session: Session, pairs: PairSet, draw: Draw) -> Rollout:
    """The n pairs of a draw as a rollout of 2n images: the preferred ones, then the others in the same order.

    Both of a pair are the same image of the draw, and so have the same noise.
    """
    model, count = session.model, len(draw)
    height, width = image_size(model)
    better, worse = [], []
    with ThreadPoolExecutor(max_workers=4) as readers:
        for part in batches(count, session.config.sampling.batch):
            session.stop.check()
            chosen = [draw.prompt_index[index] for index in part]
            images = torch.stack(list(readers.map(lambda index: pairs.images(index, height, width), chosen)))
            better.append(model.encode_images(images[:, 0]))
            worse.append(model.encode_images(images[:, 1]))
            session.display.advance(2 * len(part))
    # Anew in each round: what was kept would depend on the rounds before, which a resumed run has not seen.
    model.clear_prompt_cache()
    label = None
    if session.config.pairs.labels == "probabilities":
        first = torch.tensor([pairs.labels[index] for index in draw.prompt_index], device=model.device)
        label = torch.cat([first, 1 - first])
    cond, both = model.encode(draw.prompts, session.config.sampling.guidance), [*range(count), *range(count)]
    x0 = torch.cat([*better, *worse])
    return Rollout(
        cond.select(torch.tensor(both, device=cond.index.device)), draw.select(both), x0,
        advantage=torch.ones(2 * count, device=x0.device), label=label,
    )  # fmt: skip
