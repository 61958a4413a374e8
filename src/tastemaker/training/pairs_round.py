"""The round of algorithms that learn from given pairs of images: draw, read, encode, update."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from tastemaker.data.pairs import PairSet
from tastemaker.diffusion.sampler import batches
from tastemaker.training.draws import draw_pairs, share
from tastemaker.training.session import Session
from tastemaker.training.update import update
from tastemaker.types import Draw, Rollout


def given_round(session: Session, pairs: PairSet) -> dict[str, Any]:
    """One round on `sampling.samples` given pairs; returns its record for metrics.jsonl, which has no reward."""
    config, accelerator, state = session.config, session.accelerator, session.state
    number, samples, updates = state.round + 1, config.sampling.samples, config.optimizer.updates
    draw = draw_pairs(pairs.prompts, config.seed, number, samples)
    mine = share(samples, updates, accelerator.process_index, accelerator.num_processes)
    own = draw.select(mine)
    with session.phase("read", 2 * len(own)):
        rollout = encoded(session, pairs, own)
    session.stop.check()
    with session.phase("prepare", 1), session.inference(), torch.no_grad():
        rows = config.algorithm.prepare(session.task, rollout)
    with session.phase("train", len(rows) * config.optimizer.inner_epochs):
        metrics = update(session, rows, mine, own, samples)
    state.round = number
    return {"round": number, "passes": number * samples / len(pairs), **metrics}


@torch.no_grad()
def encoded(session: Session, pairs: PairSet, draw: Draw) -> Rollout:
    """The n pairs of a draw as a rollout of 2n images: the preferred ones, then the others in the same order.

    Both of a pair have its place in the draw, and so the same noise.
    """
    model, count = session.model, len(draw)
    side = model.latent_shape[-1] * model.scale
    better, worse = [], []
    with ThreadPoolExecutor(max_workers=4) as readers:
        for places in batches(count, session.config.sampling.batch):
            session.stop.check()
            chosen = [draw.prompt_index[place] for place in places]
            images = torch.stack(list(readers.map(lambda index: pairs.images(index, side), chosen)))
            better.append(model.encode_images(images[:, 0]))
            worse.append(model.encode_images(images[:, 1]))
            session.display.advance(2 * len(places))
    # Anew in each round: what was kept would depend on the rounds before, which a resumed run has not seen.
    model.clear_prompt_cache()
    text = model.encode(draw.prompts, session.config.sampling.guidance).text
    x0 = torch.cat([*better, *worse])
    empty = x0.new_empty(2 * count, 0)
    return Rollout(
        latents=empty,
        steps=torch.empty(0, dtype=torch.int64, device=x0.device),
        logp=empty,
        x0=x0,
        text=torch.cat([text, text]),
        advantage=torch.ones(2 * count, device=x0.device),
        draw=draw.select([*range(count), *range(count)]),
    )
