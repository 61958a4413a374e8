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
from tastemaker.diffusion.model import image_size
from tastemaker.diffusion.sampler import batches, sample
from tastemaker.training.draws import draw_round, in_turn
from tastemaker.training.lr_schedule import updates_before
from tastemaker.tree import to
from tastemaker.types import Cond, Noised

if TYPE_CHECKING:
    from tastemaker.training.session import Session

ROUND = 2**40 + 1
"""The round number of the prior images: their noise is that of no training round and no evaluation."""
_CHOSEN, _TURNS = 3, 4
_INDICES = 2**62
"""Counters of the prior images begin here, apart from those of prompts and pairs."""


@dataclass(frozen=True)
class PriorImages:
    """P images to hold on to, on the CPU."""

    x0: Tensor
    """[P,*D]"""
    cond: Cond
    """Of the P images."""
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
    session.display.log(
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
    x0 = []
    for part in batches(len(draw), config.sampling.batch):
        chosen = draw.select(part)
        cond = model.encode(chosen.prompts, config.sampling.guidance)
        x0.append(sample(model, cond, chosen, session.task.sde).x0.cpu())
        session.display.advance(len(part))
    return PriorImages(torch.cat(x0), to(model.encode(draw.prompts, config.sampling.guidance), "cpu"), None)


@torch.no_grad()
def _read(session: Session, given: Captioned, count: int) -> PriorImages:
    config, model = session.config, session.model
    height, width = image_size(model)
    chosen = in_turn(len(given), config.seed, 0, count, _CHOSEN)
    captions, x0 = [given.captions[index] for index in chosen], []
    for part in batches(count, config.sampling.batch):
        images = [given.image(chosen[index], height, width) for index in part]
        x0.append(model.encode_images(torch.stack(images)).cpu())
        model.encode([captions[index] for index in part], 1.0)
        session.display.advance(len(part))
    # The weight of guidance with which the model is asked, where `guided` says so.
    cond = to(model.encode(captions, config.sampling.guidance), "cpu")
    return PriorImages(torch.cat(x0), cond, digest(list(given.captions)))


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
        chosen = [mine[index] for index in part]
        with accelerator.no_sync(session.model.network):
            rows = _noised(session, prior, [(turns[row], done * options.rows + row) for row in chosen])
            error = losses.mean_square(session.task.residual(rows, guided=options.guided))
            accelerator.backward(options.weight * error.sum() * world / options.rows)
        total += error.detach().sum()
    return total / options.rows


def _noised(session: Session, prior: PriorImages, keys: list[tuple[int, int]]) -> Noised:
    """Rows of the images in `keys`, each with a count of its own in the round; times from all of the chain."""
    seed, number, device = session.config.seed, session.state.round + 1, session.accelerator.device
    times, shape = session.model.process.times, prior.x0.shape[1:]
    drawn = [noise.diffused(shape, times, seed, number, _INDICES + image, row, 0, 0) for image, row in keys]
    share = session.config.prior_preservation.drop_captions
    gone = torch.tensor([noise.drop(share, seed, number, _INDICES + image, row) for image, row in keys])
    images = torch.tensor([image for image, _ in keys])
    return Noised(
        x0=prior.x0[images].to(device),
        noise=torch.stack([values for _, values in drawn]).to(device),
        t=torch.tensor([time for time, _ in drawn], device=device),
        weight=torch.ones(len(keys), device=device),
        cond=to(prior.cond.select(images).dropped(gone).compact(), device),
    )
