"""The one Gaussian step against diffusers' DDIM scheduler, DDPM's posterior, and hand numbers."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from tastemaker.diffusion.process import Grid, output_scale, x0_from
from tastemaker.diffusion.sde import ddim
from tastemaker.models.schedulers import SchedulerProcess

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def scheduler(**settings):
    return DDIMScheduler(**(SD | {"set_alpha_to_one": False, "steps_offset": 1} | settings))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("steps", [20, 50])
def test_every_step_agrees_with_diffusers(eta, prediction, spacing, to_one, steps):
    theirs = scheduler(prediction_type=prediction, timestep_spacing=spacing, set_alpha_to_one=to_one)
    theirs.set_timesteps(steps)
    process = SchedulerProcess(theirs)
    grid = process.grid(steps)
    assert grid.times.tolist() == theirs.timesteps.tolist()
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=random)
    # A random x_0 estimate implies noise of size 75 at the last step, where float32 has fewer digits left.
    close = {"atol": 1e-4 if prediction == "sample" else 1e-5, "rtol": 1e-5}
    for step, t in enumerate(theirs.timesteps):
        output, z = torch.randn(2, 2, 4, 8, 8, generator=random).unbind(1)
        x0 = process.x0(output, x, t.expand(2))
        mean, std = ddim(grid, eta).step(x, x0, step)
        expected = theirs.step(output, int(t), x, eta=eta, variance_noise=z if eta else None)
        torch.testing.assert_close(x0, expected.pred_original_sample, **close)
        torch.testing.assert_close(mean + std * z, expected.prev_sample, **close)
        x = expected.prev_sample / expected.prev_sample.std()  # random outputs would blow it up


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_other_beta_schedules_and_zero_terminal_snr(schedule):
    theirs = scheduler(
        beta_schedule=schedule, prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    theirs.set_timesteps(10)
    process = SchedulerProcess(theirs)
    grid = process.grid(10)
    assert grid.alpha[0] < 1e-3  # the first step starts from noise alone
    x, output = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).unbind()
    for step, t in enumerate(theirs.timesteps):
        mean, _ = ddim(grid, 0.0).step(x, process.x0(output, x, t.expand(1)), step)
        torch.testing.assert_close(mean, theirs.step(output, int(t), x).prev_sample, atol=1e-5, rtol=1e-5)


def test_clipping_of_x0_is_honoured():
    theirs = scheduler(clip_sample=True, clip_sample_range=0.8)
    theirs.set_timesteps(10)
    process = SchedulerProcess(theirs)
    x, output = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(2)).unbind()
    t = theirs.timesteps[4]
    mean, _ = ddim(process.grid(10), 0.0).step(x, process.x0(output, x, t.expand(3)), 4)
    torch.testing.assert_close(mean, theirs.step(output, int(t), x).prev_sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("steps", "first", "last"),
    # Computed with numpy from SD's schedule.
    [(50, [0.4545, 0.4483, 0.4421], [0.0999, 0.0395, 0.02065]), (20, [0.6444, 0.6241], [0.1673, 0.0406, 0.02065])],
)
def test_sigma_table(steps, first, last):
    std = ddim(SchedulerProcess(scheduler()).grid(steps), 1.0).std.tolist()
    assert std[: len(first)] == pytest.approx(first, abs=6e-5)
    assert std[-3:] == pytest.approx(last, abs=6e-5)


def test_eta_one_is_the_ddpm_posterior():
    """Ho et al. 2020, Eq. 6-7, on the chain of the sampled times: an independent form of mean and variance."""
    grid = SchedulerProcess(scheduler()).grid(20)
    x, x0 = torch.randn(2, 1, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).unbind()
    for step in range(20):
        now, then = grid.alpha[step] ** 2, grid.alpha_next[step] ** 2
        alpha = now / then
        variance = (1 - then) / (1 - now) * (1 - alpha)
        expected = (then.sqrt() * (1 - alpha) * x0 + alpha.sqrt() * (1 - then) * x) / (1 - now)
        mean, std = ddim(grid, 1.0).step(x, x0, step)
        torch.testing.assert_close(mean, expected, atol=1e-12, rtol=1e-10)
        assert std.item() == pytest.approx(math.sqrt(variance), rel=1e-10)


def test_rows_may_be_at_different_steps():
    grid = SchedulerProcess(scheduler()).grid(20)
    x, x0 = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(4)).unbind()
    mean, std = ddim(grid, 1.0).step(x, x0, torch.tensor([0, 7, 19]))
    for row, step in enumerate((0, 7, 19)):
        one_mean, one_std = ddim(grid, 1.0).step(x[row : row + 1], x0[row : row + 1], step)
        torch.testing.assert_close(mean[row : row + 1], one_mean, atol=0, rtol=0)
        assert std[row].item() == one_std.item()


def test_a_last_step_without_noise_has_no_likelihood():
    assert ddim(SchedulerProcess(scheduler(set_alpha_to_one=True)).grid(20), 1.0).stochastic() == list(range(19))
    assert ddim(SchedulerProcess(scheduler()).grid(20), 1.0).stochastic() == list(range(20))
    assert ddim(SchedulerProcess(scheduler()).grid(20), 0.0).stochastic() == []


def test_predictions_by_hand():
    """alpha 0.6, sigma 0.8, x_0 = 1, eps = 2: x = 0.6 + 1.6 = 2.2; v = 0.6 * 2 - 0.8 * 1 = 0.4."""
    x, alpha, sigma = torch.tensor([2.2]), torch.tensor(0.6), torch.tensor(0.8)
    assert x0_from(torch.tensor([2.0]), x, alpha, sigma, "epsilon").item() == pytest.approx(1.0)
    assert x0_from(torch.tensor([0.4]), x, alpha, sigma, "v_prediction").item() == pytest.approx(1.0)
    assert x0_from(torch.tensor([1.0]), x, alpha, sigma, "sample").item() == pytest.approx(1.0)
    # Flow: alpha 0.2, sigma 0.8: x = 0.2 + 1.6 = 1.8; v = eps - x_0 = 1; x - sigma v = 1.0.
    assert x0_from(torch.tensor([1.0]), torch.tensor([1.8]), torch.tensor(0.2), sigma, "flow").item() == pytest.approx(
        1.0
    )


def test_flow_step_with_full_noise_forgets_the_old_noise():
    """From sigma 1 (pure noise) with eta 1: ratio alpha sigma'/alpha' sigma is 0, so std = sigma'."""
    one = torch.tensor([1.0], dtype=torch.float64)
    grid = Grid(torch.tensor([999]), 0 * one, one, 0.25 * one, 0.75 * one)
    x = torch.full((1, 1, 1, 1), 5.0, dtype=torch.float64)
    mean, std = ddim(grid, 1.0).step(x, torch.full_like(x, 2.0), 0)
    assert mean.item() == pytest.approx(0.5)
    assert std.item() == pytest.approx(0.75)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize("noise", [0.1, 0.6, 0.99])
def test_output_scale_undoes_x0_from(kind, noise):
    """|d output / d x_0| is one over autograd's |d x_0 / d output|."""
    sigma = torch.tensor(noise, dtype=torch.float64)
    alpha = 1 - sigma if kind == "flow" else (1 - sigma**2).sqrt()
    output = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x0_from(output, torch.tensor(0.4, dtype=torch.float64), alpha, sigma, kind).backward()
    assert output_scale(alpha, sigma, kind).item() == pytest.approx(1 / abs(output.grad.item()), rel=1e-12)
