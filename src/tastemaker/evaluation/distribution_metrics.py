"""Measures of a set of images: distance to other images, diversity, and divergence from the base model.

Features are float tensors [B,F] of any extractor. FID and KID are torchmetrics'.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tastemaker.diffusion.losses import Reduction, gaussian_kl
from tastemaker.diffusion.model import Denoiser
from tastemaker.diffusion.sampler import KeptStep, draw_transition, next_latent
from tastemaker.diffusion.sde import Sde
from tastemaker.errors import DataError
from tastemaker.rewards.learned.clip_model import Clip
from tastemaker.types import Cond, Trajectory


class ClipFeatures(nn.Module):
    """A CLIP's image features as the extractor that torchmetrics expects: images [B,3,H,W] in [0,1] to [B,F]."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip, self.num_features = clip, int(clip.model.visual_projection.out_features)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.clip.images(images)


def fid(images: Tensor, others: Tensor, extractor: nn.Module, batch: int = 64) -> float:
    """Frechet distance of the features of images and others, both [B,3,H,W] in [0,1] (Heusel et al. 2017).

    `extractor` maps a batch to features [B,F] and may have F as `num_features`. Only values of one extractor and one
    number of images compare: with fewer images than F the distance is biased upwards. Raises DataError for fewer than
    two images on a side.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    _require_several(images, others)
    channels, height, width = images.shape[1:]
    metric = FrechetInceptionDistance(feature=extractor, normalize=True, input_img_size=(channels, height, width))
    return float(_fed(metric.set_dtype(torch.float64), images, others, batch).compute())


def kid(
    images: Tensor,
    others: Tensor,
    extractor: nn.Module,
    *,
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
    batch: int = 64,
) -> tuple[float, float]:
    """Mean and deviation over subsets of the unbiased squared MMD, kernel (x.y/F + 1)^3 (Binkowski et al. 2018).

    Subsets have `subset_size` images of each side, or min(1000, the smaller side). Raises DataError.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    _require_several(images, others)
    size = subset_size or min(1000, len(images), len(others))
    if not 2 <= size <= min(len(images), len(others)):
        raise DataError(f"subsets of {size} images need as many on both sides: {len(images)} and {len(others)} given")
    with warnings.catch_warnings():
        # That it keeps all features in memory, which are small beside the images that are there already.
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save", category=UserWarning)
        metric = KernelInceptionDistance(feature=extractor, normalize=True, subsets=subsets, subset_size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = _fed(metric, images, others, batch).compute()
    return float(mean), float(deviation)


def _fed(metric: Any, images: Tensor, others: Tensor, batch: int) -> Any:
    for part, real in ((others, True), (images, False)):
        for piece in part.split(batch):
            metric.update(piece, real=real)
    return metric


def _require_several(images: Tensor, others: Tensor) -> None:
    if min(len(images), len(others)) < 2:
        raise DataError(f"FID and KID need two or more images on each side: {len(images)} and {len(others)} given")


def inception_score(logits: Tensor) -> float:
    """exp(mean over images of KL(p(y|x) || p(y))), in [1, K], of class logits [B,K] (Salimans et al. 2016).

    p(y) is the mean over the B images; there are no splits (Barratt & Sharma 2018 show that they bias it).
    """
    if logits.ndim != 2 or not len(logits):
        raise DataError(f"an inception score needs logits [images, classes], but their shape is {tuple(logits.shape)}")
    log_p = logits.double().log_softmax(dim=1)
    p = log_p.exp()
    marginal = p.mean(dim=0)
    return float(torch.exp((torch.xlogy(p, p) - torch.xlogy(p, marginal)).sum(dim=1).mean()))


@torch.no_grad()
def clip_inception_score(images: Tensor, classes: Sequence[str], clip: Clip) -> float:
    """The inception score with CLIP as the classifier (B2-DiffuRL F.2).

    B2 replaces the Inception network by CLIP's image encoder and does not say what the classes are. Here they are
    texts, the evaluated prompts or a set of labels, each counted once, and p(y|x) is the softmax over them of
    exp(logit scale) times the cosine. Values of other classes or another CLIP do not compare. Raises DataError.
    """
    return inception_score(clip_logits(clip.images(images), classes, clip))


@torch.no_grad()
def clip_logits(features: Tensor, classes: Sequence[str], clip: Clip) -> Tensor:
    """[B,K] exp(logit scale) times the cosine of a CLIP's image features [B,F] and K different texts.

    Raises DataError for fewer than two texts.
    """
    labels = list(dict.fromkeys(classes))
    if len(labels) < 2:
        raise DataError("a CLIP inception score needs two or more different classes: give more prompts or labels")
    return clip.model.logit_scale.exp() * features @ clip.texts(labels, features.device).T


def vendi_score(features: Tensor) -> float:
    """The effective number of different images, in [1, B]: exp of the entropy of the eigenvalues of K/B.

    K is the cosine kernel of features [B,F] (Friedman & Dieng 2023, Eq. 1 and 3).
    """
    x = _unit(features)
    # K/B and x'x/B have the same eigenvalues above zero.
    gram = (x @ x.T if len(x) <= x.shape[1] else x.T @ x) / len(x)
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    return float(torch.exp(-torch.xlogy(values, values).sum()))


def pairwise_diversity(features: Tensor) -> float:
    """Mean of 1 - cosine over all pairs of features [B,F], in [0, 2]; 0 where all are alike. Raises DataError."""
    x = _unit(features)
    if len(x) < 2:
        raise DataError("pairwise diversity needs two or more images")
    return float(1 - (x.sum(dim=0).square().sum() - len(x)) / (len(x) * (len(x) - 1)))


def _unit(features: Tensor) -> Tensor:
    if features.ndim != 2 or not len(features) or not features.isfinite().all():
        raise DataError(f"features must be finite and [images, numbers], but their shape is {tuple(features.shape)}")
    return F.normalize(features.double(), dim=1)


@torch.no_grad()
def chain_kl(model: Denoiser, reference: Denoiser, sde: Sde, trajectory: Trajectory, cond: Cond) -> Tensor:
    """[B] sum over the kept steps of KL(p_model(x_next|x) || p_reference(x_next|x)), in nats.

    On latents that the model itself sampled, its mean is a Monte Carlo estimate of the KL of the two chains, by
    the chain rule. Both have the steps' noise, so each KL is exact; steps without noise must not be kept.
    """
    total = torch.zeros(len(trajectory.latents), dtype=torch.float64)
    for position, step in enumerate(trajectory.steps.tolist()):
        x = trajectory.latents[:, position]
        (mean, std), (other, _) = (next_latent(one, sde, x, cond, step) for one in (model, reference))
        total += _step_kl(mean, other, std)
    return total


def compared_transition(reference: Denoiser, found: list[Tensor]) -> KeptStep:
    """A sampler's `transition` that adds to `found` the step's KL(p_model || p_reference) [B], in nats.

    Their sum over all steps with noise is the `chain_kl`, without asking the model again at the latents it has sampled.
    """

    def transition(
        model: Denoiser, sde: Sde, x: Tensor, cond: Cond, step: int, noise: Tensor, reduction: Reduction
    ) -> tuple[Tensor, Tensor]:
        mean, std = next_latent(model, sde, x, cond, step)
        found.append(_step_kl(mean, next_latent(reference, sde, x, cond, step)[0], std))
        return draw_transition(mean, std, noise, x.dtype, reduction)

    return transition


def _step_kl(mean: Tensor, other: Tensor, std: Tensor) -> Tensor:
    return gaussian_kl(mean.double(), other.double(), std.double(), "sum").cpu()
