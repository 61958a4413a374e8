"""Measures of sets of images against torchmetrics fed with features, and numbers by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn

from tastemaker.diffusion.sampler import LocalSampler
from tastemaker.diffusion.sde import ddim
from tastemaker.errors import DataError
from tastemaker.evaluation.distribution_metrics import (
    ClipFeatures,
    chain_kl,
    clip_inception_score,
    compared_transition,
    fid,
    inception_score,
    kid,
    pairwise_diversity,
    vendi_score,
)
from tastemaker.evaluation.images import fixed_draw, load_here
from tastemaker.rewards.learned.clip_model import load_clip


class Pooled(nn.Module):
    """Twelve features: means of the quarters of each channel."""

    num_features = 12

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    one = torch.rand(40, 3, 8, 8, generator=random)
    return one, (torch.rand(48, 3, 8, 8, generator=random) * 0.8 + 0.1)


def test_fid_against_its_formula(images: tuple[torch.Tensor, torch.Tensor]):
    """|m - n|^2 + tr(C + D - 2 sqrt(C D)), with the sample covariances, by scipy's matrix root."""
    x, y = (Pooled()(part).double().numpy() for part in images)
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c + d - 2 * np.real(sqrtm(c @ d)))
    assert fid(*images, Pooled(), batch=7) == pytest.approx(expected, rel=1e-4)
    assert fid(images[0], images[0], Pooled()) == pytest.approx(0, abs=1e-6)


def test_kid_against_its_formula(images: tuple[torch.Tensor, torch.Tensor]):
    """One subset of all images of a side, in which the unbiased estimate is the same for every order."""
    x, y = Pooled()(images[0]).double(), Pooled()(images[1][:40]).double()
    kernel = lambda a, b: (a @ b.T / 12 + 1) ** 3  # noqa: E731
    off = lambda k: (k.sum() - k.diag().sum()) / (40 * 39)  # noqa: E731
    expected = off(kernel(x, x)) + off(kernel(y, y)) - 2 * kernel(x, y).mean()
    mean, deviation = kid(images[0], images[1][:40], Pooled(), subsets=3)
    assert mean == pytest.approx(expected.item(), rel=1e-3, abs=1e-6)
    assert deviation == pytest.approx(0, abs=1e-5)


def test_kid_takes_subsets_by_the_seed_and_leaves_torch_alone(images: tuple[torch.Tensor, torch.Tensor]):
    before = torch.get_rng_state()
    one = kid(*images, Pooled(), subsets=5, subset_size=10, seed=1)
    assert one == kid(*images, Pooled(), subsets=5, subset_size=10, seed=1)
    assert one != kid(*images, Pooled(), subsets=5, subset_size=10, seed=2)
    assert torch.equal(before, torch.get_rng_state())


def test_fid_and_kid_refuse_single_images(images: tuple[torch.Tensor, torch.Tensor]):
    with pytest.raises(DataError, match="two or more"):
        fid(images[0][:1], images[1], Pooled())
    with pytest.raises(DataError, match="subsets of 41"):
        kid(*images, Pooled(), subset_size=41)


def test_inception_score_by_hand():
    """p = (.9,.1) and (.1,.9), marginal (.5,.5): KL = .9 ln 1.8 + .1 ln .2 = .368064 each, exp = 1.444935."""
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    assert inception_score(p.log()) == pytest.approx(1.444935, abs=1e-5)
    assert inception_score(torch.eye(4) * 1000) == pytest.approx(4)
    assert inception_score(torch.ones(5, 3)) == pytest.approx(1)


def test_clip_inception_score_is_that_of_its_logits():
    clip = load_clip("bundled", "clip-score:bundled")
    x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = ["a red circle", "a blue square", "a green star"]
    logits = np.array(
        [[clip.cosine(x[i : i + 1], [label]).item() * clip.model.logit_scale.exp().item() for label in labels]
         for i in range(6)]
    )  # fmt: skip
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    assert clip_inception_score(x, [*labels, labels[0]], clip) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(DataError, match="two or more different classes"):
        clip_inception_score(x, ["a red circle"] * 3, clip)


def test_clip_features_are_an_extractor(images: tuple[torch.Tensor, torch.Tensor]):
    extractor = ClipFeatures(load_clip("bundled", "clip-score:bundled"))
    assert extractor(images[0]).shape == (40, extractor.num_features)
    assert fid(images[0], images[1], extractor) > 0


def test_vendi_score_by_hand():
    """Alike: 1. Orthogonal: their number. Two with cosine .5: eigenvalues .75 and .25, exp(.562335) = 1.754765."""
    assert vendi_score(torch.ones(5, 3)) == pytest.approx(1)
    assert vendi_score(torch.eye(4)) == pytest.approx(4)
    pair = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5]])
    assert vendi_score(pair) == pytest.approx(1.754765, abs=1e-5)
    assert vendi_score(pair.repeat(3, 1)) == pytest.approx(1.754765, abs=1e-5)  # more images than features


def test_pairwise_diversity_by_hand():
    """Cosines 0, 0 and 1 of three images: mean of 1 - cosine is 2/3."""
    assert pairwise_diversity(torch.tensor([[1.0, 0], [0, 2], [3, 0]])) == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="two or more"):
        pairwise_diversity(torch.ones(1, 2))


class Shifted:
    """A model whose estimates of x_0 are another's plus a constant."""

    def __init__(self, model, by: float) -> None:
        self.model, self.by = model, by
        self.latent_shape, self.device = model.latent_shape, model.device

    def denoise(self, x, t, cond):
        return self.model.denoise(x, t, cond) + self.by


def test_chain_kl_against_the_log_ratio_of_the_same_chain():
    """Shifting x_0 by c moves a step's mean by c times a factor of the grid: the KL is known step by step."""
    model = load_here("bundled")
    sde = ddim(model.process.grid(5, model.latent_shape), 1.0)
    keep = sde.stochastic()
    draw = fixed_draw(["a red circle"], 2, 0)
    cond = model.encode(draw.prompts, 1.0)
    rollout = LocalSampler(model, sde)(draw, cond, keep)
    assert rollout.trajectory is not None
    same = chain_kl(model, model, sde, rollout.trajectory, cond)
    assert same.tolist() == [0, 0]
    # Measured while sampling it is the same to the bit, and so are the images.
    steps_kl = []
    while_sampling = compared_transition(Shifted(model, 0.01), steps_kl)
    again = LocalSampler(model, sde).sample_with(while_sampling, draw, cond, keep, lambda: None)
    assert torch.equal(sum(steps_kl), chain_kl(model, Shifted(model, 0.01), sde, rollout.trajectory, cond))
    assert torch.equal(again.latents, rollout.latents)
    found = chain_kl(Shifted(model, 0.01), model, sde, rollout.trajectory, cond)
    g, size = sde.grid, math.prod(model.latent_shape)
    expected = 0.0
    for step in keep:
        std = sde.std[step].item()
        a, s, an, sn = (v[step].item() for v in (g.alpha, g.sigma, g.alpha_next, g.sigma_next))
        factor = an - math.sqrt(max(0.0, sn**2 - std**2)) * a / s
        expected += size * (factor * 0.01) ** 2 / (2 * std**2)
    if g.clip is None:
        assert found.tolist() == pytest.approx([expected] * 2, rel=1e-6)
    else:  # where the estimate is cut off the shift is lost in part
        assert (found > 0).all()
