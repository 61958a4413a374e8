"""Losses and their gradients against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tastemaker.diffusion import losses


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
    """Before the first update DDPO-IS is DDPO-SF."""
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
    """c^2 |eps_1 - eps_2|^2 / (2 sigma^2), c = sqrt(1-a_p-sigma^2) - sqrt(a_p (1-a_t)/a_t)."""
    from diffusers import DDIMScheduler

    from tastemaker.diffusion.sde import ddim
    from tastemaker.models.schedulers import SchedulerProcess

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1,
        clip_sample=False,
    )  # fmt: skip
    process = SchedulerProcess(scheduler)
    grid = process.grid(20)
    x, one, two = torch.randn(3, 1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).unbind()
    for step in (0, 10, 18, 19):
        t = grid.times[step].expand(1)
        mean, std = ddim(grid, 1.0).step(x, process.x0(one, x, t), step)
        other, _ = ddim(grid, 1.0).step(x, process.x0(two, x, t), step)
        a_t, a_p, sigma = grid.alpha[step] ** 2, grid.alpha_next[step] ** 2, std.item()
        c = math.sqrt(1 - a_p - sigma**2) - math.sqrt(a_p * (1 - a_t) / a_t)
        expected = c**2 * (one - two).square().sum().item() / (2 * sigma**2)
        assert losses.gaussian_kl(mean, other, std, "sum").item() == pytest.approx(expected, rel=1e-5)


def test_normalised_log_ratio_by_hand():
    """std 0.5, eps = (1, -1), and the mean moves by (0.2, 0.4) from 0: x = (0.5, -0.5).

    log r = mean of -((x - m)^2 - x^2) / (2 * 0.25): x - m = (0.3, -0.9): -(0.09 - 0.25 + 0.81 - 0.25) / 2 / 0.5 = -0.4.
    KL = (0.04 + 0.16) / 2 / 0.5 = 0.2. (-0.4 + 0.2) * 0.5 = -0.1, which is the mean of (0.2 * 1, 0.4 * -1), and has the
    slope eps / 2 = (0.5, -0.5), whatever std is.
    """
    mean = torch.tensor([[0.2, 0.4]], dtype=torch.float64, requires_grad=True)
    old, x = torch.zeros(1, 2).double(), torch.tensor([[0.5, -0.5]]).double()
    std = torch.tensor([[0.5]]).double()
    log_ratio = losses.gaussian_logp(x, mean, std) - losses.gaussian_logp(x, old, std)
    divergence = losses.gaussian_kl(mean, old, std)
    assert log_ratio.item() == pytest.approx(-0.4)
    assert divergence.item() == pytest.approx(0.2)
    got, slope = value_and_gradient(losses.normalised_log_ratio(log_ratio, divergence, std.flatten()), mean)
    assert got.item() == pytest.approx(-0.1)
    assert slope.tolist()[0] == pytest.approx([0.5, -0.5])


@pytest.mark.parametrize(
    ("ratio", "advantage", "divergence", "loss", "gradient"),
    [
        (1.3, 2.0, 0.2, 0.0, 0.0),  # too far, and A > 0 would raise the ratio further
        (0.7, -2.0, 0.2, 0.0, 0.0),  # too far, and A < 0 would lower it further
        (1.3, -2.0, 0.2, 2.6, 2.0),  # too far, on its way back
        (0.7, 2.0, 0.2, -1.4, -2.0),
        (1.3, 2.0, 0.1, -2.6, -2.0),  # at the limit, whatever the ratio
        (0.7, -2.0, 0.05, 1.4, 2.0),
    ],
)
def test_divergence_mask_by_hand(ratio, advantage, divergence, loss, gradient):
    rho = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    a, d = (torch.tensor([value], dtype=torch.float64) for value in (advantage, divergence))
    got, slope = value_and_gradient(losses.divergence_mask(rho, a, d, 0.1), rho)
    assert got.item() == pytest.approx(loss)
    assert slope.item() == pytest.approx(gradient)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    # clip 0.1: outside of it nothing pulls back, whatever the sign, where the maximum of PPO does.
    [(1.05, 2.0, -2.1, -2.0), (1.3, 2.0, -2.2, 0.0), (0.7, 2.0, -1.8, 0.0), (1.3, -2.0, 2.2, 0.0)],
)
def test_direct_clamp_by_hand(ratio, advantage, loss, gradient):
    rho = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    got, slope = value_and_gradient(losses.direct_clamp(rho, torch.tensor([advantage]).double(), 0.1), rho)
    assert got.item() == pytest.approx(loss)
    assert slope.item() == pytest.approx(gradient)


def test_preference_by_hand():
    """Margin 0: ln 2 = 0.693147, slope -1/2. Margin ln 3: ln(1 + 1/3) = 0.287682, slope -1/4. And no overflow."""
    margin = torch.tensor([0.0, math.log(3), -1000.0], dtype=torch.float64, requires_grad=True)
    value, gradient = value_and_gradient(losses.preference(margin), margin)
    assert value.tolist() == pytest.approx([0.6931472, 0.2876821, 1000.0], abs=1e-7)
    assert gradient.tolist() == pytest.approx([-0.5, -0.25, -1.0])


@pytest.mark.parametrize(
    ("clip", "loss", "gradient"),
    [
        # beta 2, h = 0.2, h' = -0.1: margin 0.6, ln(1 + e^-0.6) = 0.437488; 2 sigmoid(-0.6) = 0.708687.
        (None, 0.4374880, (-0.7086874, 0.7086874)),
        # clip 0.1: h becomes ln 1.1 = 0.0953102 and has no gradient; -0.1 is above ln 0.9 = -0.1053605 and stays.
        # margin 0.3906204, ln(1 + e^-0.3906204) = 0.516790; 2 sigmoid(-0.3906204) = 0.807136.
        (0.1, 0.5167903, (0.0, 0.8071359)),
    ],
)
def test_step_dpo_by_hand(clip, loss, gradient):
    ratios = torch.tensor([0.2, -0.1], dtype=torch.float64, requires_grad=True)
    value, slope = value_and_gradient(losses.step_dpo(ratios[:1], ratios[1:], 2.0, clip), ratios)
    assert value.item() == pytest.approx(loss, abs=2e-6)
    assert slope.tolist() == pytest.approx(gradient, abs=2e-6)


def test_margin_aware_by_hand():
    """e = 0.04 and 0.09, snr 5, T = 10, beta 0.1: s(0.2) = 0.2 / 0.221403 = 0.903331, s(0.45) = 0.791818; the margin is
    1.115128, ln(1 + exp(-1.115128)) = 0.283578: 0.04 + 0.028358.

    s'(x) = (e^x - 1 - x e^x) / (e^x - 1)^2 = -0.466711 and -0.425503, sigmoid(-1.115128) = 0.246916: slopes
    1 + 0.1 * 0.246916 * 50 * 0.466711 = 1.576194, and -0.1 * 0.246916 * 50 * 0.425503 = -0.525316.
    """
    errors = torch.tensor([0.04, 0.09], dtype=torch.float64, requires_grad=True)
    value, slope = value_and_gradient(losses.margin_aware(errors[:1], errors[1:], 0.1, 5.0, 10), errors)
    assert value.item() == pytest.approx(0.0683578, abs=1e-6)
    assert slope.tolist() == pytest.approx([1.576194, -0.525316], abs=1e-5)


@pytest.mark.parametrize(("good", "loss", "gradient"), [(True, 0.2689414, -196.6119), (False, 0.7310586, 196.6119)])
def test_prospect_by_hand(good, loss, gradient):
    """1 - sigmoid(+-1000 * 0.001), and its slope -+1000 sigmoid(1) sigmoid(-1)."""
    gain = torch.tensor([0.001], dtype=torch.float64, requires_grad=True)
    value, slope = value_and_gradient(losses.prospect(gain, 1000.0, good=good), gain)
    assert value.item() == pytest.approx(loss, abs=1e-6)
    assert slope.item() == pytest.approx(gradient, abs=1e-3)


def test_generalised_huber_by_hand():
    """e = 0.0625: 4 (0.5 - 1e-10^0.25) = 2 - 4 * 0.00316228 = 1.987351, slope e^-0.75 = 8; p = 1 is e itself."""
    error = torch.tensor([0.0625], dtype=torch.float64, requires_grad=True)
    value, slope = value_and_gradient(losses.generalised_huber(error, 0.25), error)
    assert value.item() == pytest.approx(1.987351, abs=1e-6)
    assert slope.item() == pytest.approx(8.0, abs=1e-6)
    assert losses.generalised_huber(error, 1.0).item() == pytest.approx(0.0625)


def test_diffusion_dpo_by_hand():
    """e = 0.3, e' = 0.5, reference 0.4 and 0.45, beta 10: (-0.2) - (-0.05) = -0.15, margin -5 * -0.15 = 0.75.
    ln(1 + e^-0.75) = 0.386871; slope 5 sigmoid(-0.75) = 1.604106 with respect to e, which is to fall."""
    errors = torch.tensor([0.3, 0.5], dtype=torch.float64, requires_grad=True)
    ref, ref_other = torch.tensor([[0.4], [0.45]], dtype=torch.float64)
    value, slope = value_and_gradient(losses.diffusion_dpo(errors[:1], errors[1:], ref, ref_other, 10.0), errors)
    assert value.item() == pytest.approx(0.3868710, abs=1e-6)
    assert slope.tolist() == pytest.approx([1.6041065, -1.6041065], abs=1e-6)


def test_diffusion_dpo_with_a_probability_by_hand():
    """The same margin 0.75, and 4 of 5 votes for the first image: 0.8 * 0.386871 + 0.2 * 1.136871 = 0.536871, as
    ln(1 + e^0.75) = 1.136871; slope 5 (0.8 sigmoid(-0.75) - 0.2 sigmoid(0.75)) = 5 (0.256657 - 0.135836) = 0.604106.
    A tie pulls the margin to 0: slope 5 * 0.5 (0.320821 - 0.679179) = -0.895893, which lets e rise."""
    ref, ref_other = torch.tensor([[0.4], [0.45]], dtype=torch.float64)
    for label, loss, gradient in ((0.8, 0.5368710, 0.6041065), (0.5, 0.7618710, -0.8958935)):
        errors = torch.tensor([0.3, 0.5], dtype=torch.float64, requires_grad=True)
        soft = losses.diffusion_dpo(errors[:1], errors[1:], ref, ref_other, 10.0, torch.tensor([label]).double())
        value, slope = value_and_gradient(soft, errors)
        assert value.item() == pytest.approx(loss, abs=1e-6)
        assert slope.tolist() == pytest.approx([gradient, -gradient], abs=1e-6)


@pytest.mark.parametrize(
    ("adaptive", "loss", "gradient"),
    [
        # v_old - v = (1, 3), v_theta - v_old = (1, 1), beta 0.5, g 0.75: residuals (1.5, 3.5) and (0.5, 2.5).
        # Mean squares 7.25 and 3.25: 0.75 * 7.25 + 0.25 * 3.25 = 6.25.
        # Slope of a mean of two squares is the residual: 0.375 (1.5, 3.5) - 0.125 (0.5, 2.5) = (0.5, 1).
        (False, 6.25, [0.5, 1.0]),
        # Divided by the mean sizes 2.5 and 1.5: 0.75 * 2.9 + 0.25 * 2.1666667 = 2.7166667;
        # 0.15 (1.5, 3.5) - 0.0833333 (0.5, 2.5) = (0.1833333, 0.3166667).
        (True, 2.7166667, [0.1833333, 0.3166667]),
    ],
)
def test_negative_aware_by_hand(adaptive, loss, gradient):
    moved = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    old, good = torch.tensor([[1.0, 3.0]], dtype=torch.float64), torch.tensor([0.75], dtype=torch.float64)
    value, slope = value_and_gradient(losses.negative_aware(moved, old, good, 0.5, adaptive), moved)
    assert value.item() == pytest.approx(loss, abs=1e-6)
    assert slope[0].tolist() == pytest.approx(gradient, abs=1e-6)


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient"),
    [
        # V_old 0.5, clip 0.2. Inside the range: 0.5 * (0.6 - 2)^2 = 0.98, slope -1.4.
        (0.6, 2.0, 0.98, -1.4),
        # Towards the target but too far: 0.5 max(1, (0.7 - 2)^2 = 1.69) = 0.845, and no slope.
        (1.0, 2.0, 0.845, 0.0),
        # Away from the target: 0.5 max(1, 0.7^2) = 0.5, slope 1, which pulls back.
        (1.0, 0.0, 0.5, 1.0),
        # Too far down: near = 0.3; 0.5 max((0 + 1)^2, (0.3 + 1)^2 = 1.69) = 0.845, and no slope.
        (0.0, -1.0, 0.845, 0.0),
    ],
)
def test_clipped_value_by_hand(value, target, loss, gradient):
    estimate = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    before, wanted = torch.tensor([0.5], dtype=torch.float64), torch.tensor([target], dtype=torch.float64)
    got, slope = value_and_gradient(losses.clipped_value(estimate, before, wanted, 0.2), estimate)
    assert got.item() == pytest.approx(loss)
    assert slope.item() == pytest.approx(gradient)


def gauss_hermite(mean, std, nodes=120):
    """Points [N,1] and weights [N] with which sums are expectations under N(mean, std^2)."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    points, weights = torch.from_numpy(points), torch.from_numpy(weights / weights.sum())
    return mean + std * points.unsqueeze(1), weights


def estimates(kind, delta, std=0.5):
    """Samples' weights and z = (x - mean) / std, and the estimates, for a policy `delta` deviations off."""
    reference = torch.full((1, 1), 0.3, dtype=torch.float64)
    mean, deviation = reference + delta * std, torch.full((1, 1), std, dtype=torch.float64)
    x, weight = gauss_hermite(mean.item(), std)
    logp, logp_ref = (losses.gaussian_logp(x, m, deviation) for m in (mean, reference))
    kl = losses.kl_estimate(kind, logp, logp_ref, mean, reference, deviation, "sum")
    return weight, ((x - mean) / deviation).flatten(), kl.expand(len(x))


@pytest.mark.parametrize("delta", [0.25, 0.5, 1.0])
def test_expectations_of_the_divergence_estimators(delta):
    """exact, k1 and k3 have delta^2 / 2; the thesis' form exp(delta^2) - 1 - delta^2 / 2."""
    expected = dict.fromkeys(("exact", "k1", "k3"), delta**2 / 2) | {"thesis": math.exp(delta**2) - 1 - delta**2 / 2}
    for kind, value in expected.items():
        weight, _, kl = estimates(kind, delta)
        assert (weight * kl).sum().item() == pytest.approx(value, rel=1e-8), kind
        if kind in ("k3", "thesis"):
            assert (kl >= 0).all()


def test_the_thesis_table_of_its_estimator():
    """0.159 where the divergence is 0.125, and 1.22 where it is 0.5."""
    for delta, value, true in ((0.5, 0.159, 0.125), (1.0, 1.22, 0.5)):
        weight, _, kl = estimates("thesis", delta)
        assert (weight * kl).sum().item() == pytest.approx(value, abs=2e-3)
        weight, _, kl = estimates("exact", delta)
        assert (weight * kl).sum().item() == pytest.approx(true)


@pytest.mark.parametrize(("reduction", "size"), [("mean", 1 / 3), ("sum", 1)])
def test_k1_is_the_exact_divergence_on_average_in_several_dimensions(reduction, size):
    """Shift (0.3, -0.2, 0.1) / 0.5 = (0.6, -0.4, 0.2): (0.36 + 0.16 + 0.04) / 2 = 0.28. Pairs of opposite
    noises leave the expectation exact: what is odd in the noise cancels."""
    shift = torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64)
    z = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, std = shift + 0.5 * torch.cat([z, -z]), torch.full((1, 1), 0.5, dtype=torch.float64)
    logp, logp_ref = (losses.gaussian_logp(x, m, std, reduction) for m in (shift, torch.zeros_like(shift)))
    for kind in ("exact", "k1"):
        kl = losses.kl_estimate(kind, logp, logp_ref, shift, torch.zeros_like(shift), std, reduction)
        assert kl.mean().item() == pytest.approx(0.28 * size, rel=1e-9), kind


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        # target 6, 256 episodes, horizon 10000, weight 0.2. On target: unchanged.
        (6.0, 0.2),
        # 10 % above: 0.2 (1 + 0.1 * 0.0256) = 0.200512. Far above and below: bounded to +-0.2: 1 +- 0.00512.
        (6.6, 0.200512),
        (600.0, 0.201024),
        (0.0, 0.198976),
    ],
)
def test_adaptive_kl_by_hand(measured, expected):
    assert losses.adaptive_kl(0.2, measured, 6.0, 256, 10000) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("delta", [0.25, 0.5, 1.0])
def test_what_a_divergence_in_the_reward_teaches_its_own_step(delta):
    """A policy gradient makes E[z k] of an estimate k, z = (x - mean) / std = std times the slope of log p.

    With log p/q = delta z + delta^2 / 2: k1 gives delta, the divergence's own slope (times std); exact 0, as it does
    not depend on x. For k3, E[z q/p] = -delta (q is p shifted by -delta), so k3 gives -delta + delta = 0. For
    the thesis' form E[z p/q] = delta exp(delta^2), hence delta (exp(delta^2) - 1).
    """
    expected = {"exact": 0.0, "k1": delta, "k3": 0.0, "thesis": delta * (math.exp(delta**2) - 1)}
    for kind, value in expected.items():
        weight, z, kl = estimates(kind, delta)
        assert (weight * z * kl).sum().item() == pytest.approx(value, abs=1e-8), kind


def test_what_is_minimised_where_the_reward_has_a_gradient():
    reward = torch.tensor([-1.0, 1.5, 3.0], requires_grad=True)
    expected = {
        "reward": ([1.0, -1.5, -3.0], [-1.0, -1.0, -1.0]),
        "distance": ([3.0, 0.5, 1.0], [-1.0, -1.0, 1.0]),
        "hinge": ([3.0, 0.5, 0.0], [-1.0, -1.0, 0.0]),
    }
    for objective, (values, slopes) in expected.items():
        loss = losses.reward_loss(reward, objective, 2.0)
        assert loss.tolist() == values, objective
        assert torch.autograd.grad(loss.sum(), reward)[0].tolist() == slopes, objective
