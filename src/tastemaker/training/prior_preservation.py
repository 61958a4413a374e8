"""Prior preservation: a denoising loss on images that the model should not forget, beside whatever else it learns.

What PPO-ptx is for language models (Ouyang et al. 2022, Eq. 2): the pre-training loss, added to each update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tastemaker import noise
from tastemaker.config.schema import Config
from tastemaker.data.captioned_images import Captioned, digest, load_captioned
from tastemaker.diffusion import losses
from tastemaker.diffusion.sampler import batches, sample
from tastemaker.training.draws import draw_round, in_turn
from tastemaker.training.lr_schedule import updates_before
from tastemaker.types import Noised

if TYPE_CHECKING:
    from tastemaker.training.session import Session

ROUND = 2**40 + 1
"""The round number of the prior images: their noise is that of no training round and no evaluation."""
_CHOSEN, _TURNS = 3, 4
_PLACES = 2**62
"""Counters of the prior images begin here, apart from those of prompts and pairs."""


@dataclass(frozen=True)
class PriorImages:
    """P images to hold on to, on the CPU."""

    x0: Tensor
    """[P,*D]"""
    text: Tensor
    """[P,L,C]"""
    digest: str | None
    """SHA-256 of the captions of given images."""


def given_images(config: Config) -> Captioned | None:
    """The images that the config names, None where it wants none or the base model's own. Raises DataError."""
    options = config.prior_preservation
    return load_captioned(options.source, options.split) if options.weight > 0 and options.source != "base" else None


def load_prior_images(session: Session, given: Captioned | None) -> PriorImages | None:
    """The images, sampled or read and encoded; None where its weight is 0.

    To be called before training or loading a checkpoint, while the model is the base model. Everything comes from
    counters, so that a resumed run has the same images. Each process makes all of them.
    """
    options = session.config.prior_preservation
    if options.weight == 0:
        return None
    count = options.images if given is None else min(options.images, len(given))
    session.display.say(
        f"prior preservation: {count} images of {session.config.model if given is None else options.source}"
    )
    with session.phase("prior images", count), session.inference():
        made = _sampled(session) if given is None else _read(session, given, count)
    session.model.clear_prompt_cache()
    return made


@torch.no_grad()
def _sampled(session: Session) -> PriorImages:
    config, model = session.config, session.model
    draw = draw_round(session.prompts, config.seed, ROUND, config.prior_preservation.images, 1)
    parts = []
    for places in batches(len(draw), config.sampling.batch):
        chosen = draw.select(places)
        cond = model.encode(chosen.prompts, config.sampling.guidance)
        parts.append(sample(model, cond, chosen, session.task.grid, config.sampling.eta))
        session.display.advance(len(places))
    return PriorImages(
        torch.cat([part.x0.cpu() for part in parts]), torch.cat([part.text.cpu() for part in parts]), None
    )


@torch.no_grad()
def _read(session: Session, given: Captioned, count: int) -> PriorImages:
    config, model = session.config, session.model
    side = model.latent_shape[-1] * model.scale
    chosen = in_turn(len(given), config.seed, 0, count, _CHOSEN)
    x0, text = [], []
    for places in batches(count, config.sampling.batch):
        indices = [chosen[place] for place in places]
        images = [given.image(index, side) for index in indices]
        x0.append(model.encode_images(torch.stack(images)).cpu())
        text.append(model.encode([given.captions[index] for index in indices], 1.0).text.cpu())
        session.display.advance(len(indices))
    return PriorImages(torch.cat(x0), torch.cat(text), digest(list(given.captions)))


def add_prior_loss(session: Session, prior: PriorImages, done: int) -> Tensor:
    """Adds the gradient of weight * mean loss over all processes' rows; returns this process' part of the mean.

    `done` updates of this round came before. Its backward passes are not synchronised, since those of the update's
    own rows, which follow, are.
    """
    config, accelerator = session.config, session.accelerator
    options, world = config.prior_preservation, accelerator.num_processes
    before = updates_before(session) + done
    turns = in_turn(len(prior.x0), config.seed, before * options.rows, options.rows, _TURNS)
    mine = range(accelerator.process_index, options.rows, world)
    total = torch.zeros((), device=accelerator.device)
    for part in batches(len(mine), config.optimizer.rows):
        places = [mine[place] for place in part]
        with accelerator.no_sync(session.model.network):
            rows = _noised(session, prior, [(turns[place], done * options.rows + place) for place in places])
            error = losses.mean_square(session.task.residual(rows, None if options.guided else 1.0))
            accelerator.backward(options.weight * error.sum() * world / options.rows)
        total += error.detach().sum()
    return total / options.rows


def _noised(session: Session, prior: PriorImages, keys: list[tuple[int, int]]) -> Noised:
    """Rows of the images in `keys`, each with a count of its own in the round; times from all of the chain."""
    seed, number, device = session.config.seed, session.state.round + 1, session.accelerator.device
    times, shape = range(session.model.process.length), prior.x0.shape[1:]
    drawn = [noise.diffused(shape, times, seed, number, _PLACES + image, row, 0, 0) for image, row in keys]
    share = session.config.prior_preservation.drop_captions
    gone = torch.tensor([noise.drop(share, seed, number, _PLACES + image, row) for image, row in keys])
    images = [image for image, _ in keys]
    text = prior.text[images].to(device)
    return Noised(
        x0=prior.x0[images].to(device),
        noise=torch.stack([values for _, values in drawn]).to(device),
        t=torch.tensor([time for time, _ in drawn], device=device),
        weight=torch.ones(len(keys), device=device),
        text=text.where(~gone.reshape(-1, 1, 1).to(device), session.task.empty),
    )
