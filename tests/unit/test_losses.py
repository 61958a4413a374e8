"""Losses and their gradients against numbers worked out by hand."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tastemaker import losses


def value_and_gradient(loss, variable):
    (gradient,) = torch.autograd.grad(loss.sum(), variable)
    return loss.detach(), gradient


def test_gaussian_logp_by_hand():
    """x - mean = (1, 2), std = 2: -(1 + 4)/(2*4)/2 = -0.3125; minus ln 2 = 0.693147, minus ln sqrt(2 pi) = 0.918939:
    -1.924586. Gradient with respect to the mean: (x - mean) / std^2 / 2 elements = (0.125, 0.25)."""
    mean = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    x, std = torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.tensor([[2.0]], dtype=torch.float64)
    value, gradient = value_and_gradient(losses.gaussian_logp(x, mean, std), mean)
    assert value.item() == pytest.approx(-1.9245857, abs=1e-7)
    assert gradient.tolist() == [[0.125, 0.25]]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gaussian_logp_against_torch(reduction):
    x, mean = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    std = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64).view(3, 1, 1, 1)
    expected = getattr(Normal(mean, std).log_prob(x).flatten(1), reduction)(dim=1)
    torch.testing.assert_close(losses.gaussian_logp(x, mean, std, reduction), expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        # clip 0.1. Inside the range: loss = -A rho, gradient -A.
        (1.05, 2.0, -2.1, -2.0),
        (0.95, -2.0, 1.9, 2.0),
        # Too far in the direction the advantage wants: max(-A rho, -A clip) takes the constant.
        (1.3, 2.0, -2.2, 0.0),  # max(-2.6, -2.2)
        (0.7, -2.0, 1.8, 0.0),  # max(1.4, 1.8)
        # Too far in the other direction: the unclipped term is the larger, and pulls back.
        (0.7, 2.0, -1.4, -2.0),  # max(-1.4, -1.8)
        (1.3, -2.0, 2.6, 2.0),  # max(2.6, 2.2)
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, gradient):
    rho = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    got, slope = value_and_gradient(losses.clipped_surrogate(rho, torch.tensor([advantage]).double(), 0.1), rho)
    assert got.item() == pytest.approx(loss)
    assert slope.item() == pytest.approx(gradient)


def test_score_function_by_hand():
    logp = torch.tensor([-1.5, 0.25], dtype=torch.float64, requires_grad=True)
    value, gradient = value_and_gradient(losses.score_function(logp, torch.tensor([2.0, -4.0]).double()), logp)
    assert value.tolist() == [3.0, 1.0]
    assert gradient.tolist() == [-2.0, 4.0]


def test_at_ratio_one_both_estimators_have_the_same_gradient():
    """Before the first update DDPO-IS is DDPO-SF (methods.md §2.1)."""
    logp = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    advantage = torch.linspace(-2, 2, 6, dtype=torch.float64)
    ratio = (logp - logp.detach()).exp()
    _, clipped = value_and_gradient(losses.clipped_surrogate(ratio, advantage, 1e-4), logp)
    _, score = value_and_gradient(losses.score_function(logp, advantage), logp)
    torch.testing.assert_close(clipped, score)


def test_gaussian_kl_by_hand_and_against_torch():
    """Means differ by (1, 3), std 2: (1 + 9) / (2 * 4) = 1.25, a half of it per element."""
    mean, reference = torch.tensor([[1.0, 3.0]]).double(), torch.zeros(1, 2).double()
    std = torch.tensor([[2.0]]).double()
    assert losses.gaussian_kl(mean, reference, std).item() == pytest.approx(0.625)
    expected = kl_divergence(Normal(mean, std), Normal(reference, std)).sum().item()
    assert losses.gaussian_kl(mean, reference, std, "sum").item() == pytest.approx(expected)


def test_step_kl_equals_the_closed_form_of_the_noise_difference():
    """c^2 |eps_1 - eps_2|^2 / (2 sigma^2), c = sqrt(1-a_p-sigma^2) - sqrt(a_p (1-a_t)/a_t) (methods.md §1.1)."""
    from diffusers import DDIMScheduler

    from tastemaker.models.latent_unet import SchedulerProcess
    from tastemaker.process import transition

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1,
        clip_sample=False,
    )  # fmt: skip
    process = SchedulerProcess(scheduler)
    grid = process.grid(20)
    x, one, two = torch.randn(3, 1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).unbind()
    for step in (0, 10, 18, 19):
        t = grid.times[step].expand(1)
        mean, std = transition(x, process.x0(one, x, t), grid, step, 1.0)
        other, _ = transition(x, process.x0(two, x, t), grid, step, 1.0)
        a_t, a_p, sigma = grid.alpha[step] ** 2, grid.alpha_next[step] ** 2, std.item()
        c = math.sqrt(1 - a_p - sigma**2) - math.sqrt(a_p * (1 - a_t) / a_t)
        expected = c**2 * (one - two).square().sum().item() / (2 * sigma**2)
        assert losses.gaussian_kl(mean, other, std, "sum").item() == pytest.approx(expected, rel=1e-5)
