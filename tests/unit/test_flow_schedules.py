"""Noise schedules against closed forms, diffusers' own steps and numbers by hand; grids against diffusers'."""

from __future__ import annotations

import json
import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.distributions import Normal

from tastemaker.diffusion.losses import gaussian_kl, gaussian_logp
from tastemaker.diffusion.process import Grid
from tastemaker.diffusion.sde import cps, dance_sde, ddim, flow_sde, is_flow, make_sde
from tastemaker.errors import ConfigError, ModelError
from tastemaker.models.flow_process import FlowProcess, linear_sigmas, load_flow_scheduler

TYPES = {"ddim": ddim, "cps": cps, "flow-sde": flow_sde, "dance-sde": dance_sde}


def grid(*sigmas):
    s = torch.tensor(sigmas, dtype=torch.float64)
    return Grid(1000 * s[:-1], 1 - s[:-1], s[:-1], 1 - s[1:], s[1:])


FOUR = grid(1.0, 0.9, 0.6, 0.25, 0.0)


def process(**config):
    return FlowProcess(FlowMatchEulerDiscreteScheduler(**config))


class Flow:
    """As much of a model as a schedule is made from."""

    def __init__(self, made, shape=(4, 8, 8)):
        self.process, self.latent_shape = made, shape


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("step", [0, 1, 2])
def test_log_probability_and_divergence_are_the_gaussians(kind, step):
    sde, x, x0, other, after = TYPES[kind](FOUR, 0.7), *(normal(seed, 3, 2, 4, 4) for seed in range(4))
    mean, std = sde.step(x, x0, step)
    mean_ref, std_ref = sde.step(x, other, step)
    assert torch.equal(std, std_ref)
    p, q = Normal(mean, std.expand_as(mean)), Normal(mean_ref, std.expand_as(mean))
    assert torch.allclose(gaussian_logp(after, mean, std, "sum"), p.log_prob(after).sum(dim=(1, 2, 3)), rtol=1e-12)
    divergence = torch.distributions.kl_divergence(p, q).mean(dim=(1, 2, 3))
    assert torch.allclose(gaussian_kl(mean, mean_ref, std), divergence, rtol=1e-12)


@pytest.mark.parametrize(("eta", "stochastic"), [(1.0, True), (0.0, False)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_cps_is_diffusers_own_step(eta, stochastic, shift):
    """eta = 1: with `stochastic_sampling` and the same noise; eta = 0: its Euler step."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=stochastic)
    theirs.set_timesteps(5)
    made = FlowProcess(theirs, sigmas=None)
    sde = cps(made.grid(5), eta)
    x, v = (normal(seed, 2, 4, 8, 8).float() for seed in (1, 2))
    for index, t in enumerate(theirs.timesteps):
        generator = torch.Generator().manual_seed(index)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(index))
        expected = theirs.step(v, t, x, generator=generator, return_dict=False)[0]
        time = sde.grid.times[index].expand(2)
        mean, std = sde.step(x.double(), made.x0(v.double(), x.double(), time), index)
        assert torch.allclose((mean + std * noise).float(), expected, atol=2e-6), index
        x = expected


@pytest.mark.parametrize("kind", TYPES)
def test_without_noise_each_is_the_ode(kind):
    """x + v (sigma_s - sigma_t), for eta = 0 and at the steps that may have no noise."""
    x, x0 = normal(0, 2, 3, 2, 2), normal(1, 2, 3, 2, 2)
    for sde, step in ((TYPES[kind](FOUR, 0.0), 1), (TYPES[kind](FOUR, 0.7).noise_only_at([1]), 2)):
        mean, std = sde.step(x, x0, step)
        sigma, after = FOUR.sigma[step], FOUR.sigma_next[step]
        assert std.max() == 0
        assert torch.allclose(mean, x + (x - x0) / sigma * (after - sigma), atol=1e-14)


def test_which_steps_have_noise():
    for kind, of in TYPES.items():
        last = [3] if kind in ("flow-sde", "dance-sde") else []
        assert of(FOUR, 0.5).stochastic() == [0, 1, 2, *last], kind
        assert of(FOUR, 0.5).noise_only_at([2]).stochastic() == [2]
        assert of(FOUR, 0.0).stochastic() == []
        assert len(of(FOUR, 0.5)) == 4


def test_flow_sde_by_hand():
    """Step from 0.9 to 0.6 with eta 0.7: g^2 = 0.49 * 0.9 / 0.1 = 4.41, ds = -0.3, std = 2.1 sqrt(0.3) = 1.150217.

    For x = 1 and x_0 = 0.1: v = (1 - 0.1) / 0.9 = 1, eps = x + 0.1 v = 1.1, drift = 1 + 4.41 / 1.8 * 1.1 = 3.695,
    mean = 1 - 0.3 * 3.695 = -0.1085. By the paper's form: x (1 + g^2 / (2 s) ds) + v (1 + g^2 (1 - s) / (2 s)) ds =
    (1 - 2.45 * 0.3) - (1 + 0.245) * 0.3 = 0.265 - 0.3735. At s = 1 with 0.9 after it: g^2 = 0.49 / (1 - 0.9) = 4.9.
    """
    sde, x, x0 = flow_sde(FOUR, 0.7), torch.ones(1, 1, 1, 1).double(), torch.full((1, 1, 1, 1), 0.1).double()
    mean, std = sde.step(x, x0, 1)
    assert mean.item() == pytest.approx(-0.1085)
    assert std.item() == pytest.approx(1.1502173)
    assert sde.std[0].item() == pytest.approx(math.sqrt(4.9 * 0.1))


def test_dance_sde_by_hand():
    """Step from 0.9 to 0.6 with eta 0.3: drift = 1 + 0.09 / 1.8 * 1.1 = 1.055, mean = 1 - 0.3165 = 0.6835,
    std = 0.3 sqrt(0.3) = 0.164317."""
    sde, x, x0 = dance_sde(FOUR, 0.3), torch.ones(1, 1, 1, 1).double(), torch.full((1, 1, 1, 1), 0.1).double()
    mean, std = sde.step(x, x0, 1)
    assert mean.item() == pytest.approx(0.6835)
    assert std.item() == pytest.approx(0.1643168)


def test_cps_std_by_hand():
    """0.6 sin(pi / 4) = 0.424264 for eta 0.5; all of sigma for eta 1, so that the mean is alpha x_0."""
    assert cps(FOUR, 0.5).std[1].item() == pytest.approx(0.4242641)
    mean, std = cps(FOUR, 1.0).step(normal(0, 1, 2), torch.full((1, 2), 2.0).double(), 1)
    assert torch.allclose(mean, torch.full((1, 2), 0.8).double())
    assert std.item() == pytest.approx(0.6)


@pytest.mark.parametrize("kind", TYPES)
def test_rows_at_different_steps_are_as_alone(kind):
    sde, x, x0 = TYPES[kind](FOUR, 0.6), normal(0, 3, 2, 2), normal(1, 3, 2, 2)
    mean, std = sde.step(x, x0, torch.tensor([0, 2, 3]))
    for row, step in enumerate((0, 2, 3)):
        one_mean, one_std = sde.step(x[row : row + 1], x0[row : row + 1], step)
        assert torch.equal(mean[row : row + 1], one_mean)
        assert std[row].item() == one_std.item()


@pytest.mark.parametrize("kind", ["ddim", "flow-sde", "dance-sde"])
@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_marginals_are_kept(kind, eta):
    """For images N(0, 0.25) the estimate of x_0 is linear, so the variance after 2000 steps is a product: near 0.25.

    cps is not among them: its noise does not become less with more steps, and it keeps coefficients, not marginals.
    """
    count = 2000
    sde = TYPES[kind](grid(*torch.linspace(1, 0, count + 1).tolist()), eta)
    variance = 1.0
    for step in range(count - 1):
        alpha, sigma = sde.grid.alpha[step].item(), sde.grid.sigma[step].item()
        gain = 0.25 * alpha / (alpha**2 * 0.25 + sigma**2)
        x = torch.ones(1, 1, dtype=torch.float64)
        mean, std = sde.step(x, gain * x, step)
        variance = mean.item() ** 2 * variance + std.item() ** 2
    assert variance == pytest.approx(0.25, rel=0.03)


def test_the_type_follows_the_model_and_is_checked():
    flow = Flow(process())
    levels = {kind: make(flow.process.grid(4), 0.5).std for kind, make in TYPES.items()}
    assert make_sde(flow, 4, 0.5).std.equal(levels["cps"])
    for kind, level in levels.items():
        assert make_sde(flow, 4, 0.5, kind).std.equal(level)
        assert sum(level.equal(other) for other in levels.values()) == 1
    with pytest.raises(ConfigError, match=r"sampling\.eta is 1\.5, but must be 0 to 1 .* auto, which is cps"):
        make_sde(flow, 4, 1.5)
    assert make_sde(flow, 4, 1.5, "flow-sde").std[1] > 0


def test_a_model_without_a_flow_has_no_flow_sde(model):
    grid = model.process.grid(4)
    assert make_sde(model, 4, 1.5).std.equal(ddim(grid, 1.5).std)
    assert make_sde(model, 4, 1.0, "cps").std.equal(grid.sigma_next)
    for kind in ("flow-sde", "dance-sde"):
        with pytest.raises(ConfigError, match=f"sampling.sde_type is {kind}, which is defined for flow-matching"):
            make_sde(model, 4, 1.0, kind)


CONFIGS = {
    "plain": {},
    "static shift": {"shift": 3.0},
    "dynamic": {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "terminal": {"use_dynamic_shifting": True, "shift_terminal": 0.02, "max_shift": 0.9, "max_image_seq_len": 8192},
    "karras": {"use_karras_sigmas": True},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("sigmas", [None, linear_sigmas], ids=["own", "linear"])
def test_grids_are_diffusers(config, sigmas):
    """mu by hand for 64 x 32 latents with patches of 2, 512 tokens: base + (max - base) (512 - 256) / (most - 256)."""
    made = FlowProcess(FlowMatchEulerDiscreteScheduler(**config), patch=2, sigmas=sigmas)
    low, high, most = (
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
        config.get("max_image_seq_len", 4096),
    )
    mu = low + (high - low) * 256 / (most - 256)
    theirs = FlowMatchEulerDiscreteScheduler(**config)
    given = {"mu": mu} if config.get("use_dynamic_shifting") else {}
    if sigmas is None:
        theirs.set_timesteps(7, **given)
    else:
        theirs.set_timesteps(sigmas=[1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7], **given)
    found = made.grid(7, (16, 64, 32))
    assert found.times.dtype == torch.float64
    assert torch.allclose(found.sigma.float(), theirs.sigmas[:-1], atol=1e-6)
    assert torch.allclose(found.sigma_next.float(), theirs.sigmas[1:], atol=1e-6)
    assert torch.allclose(found.times.float(), theirs.timesteps, atol=1e-3)
    assert is_flow(found)
    assert made.times == range(1, 1001)


def test_the_process_by_hand():
    """At t = 250: x = 0.75 x_0 + 0.25 eps; for v = 2 and x = 1 x_0 = 1 - 0.25 * 2; an output moves 4 times as far."""
    made, t = process(), torch.tensor([250])
    assert [value.item() for value in made.scales(t)] == [0.75, 0.25]
    assert made.x0(torch.full((1, 1), 2.0), torch.ones(1, 1), t).item() == 0.5
    assert made.output_scale(t).item() == 4.0
    with pytest.raises(ConfigError, match=r"sampling\.steps is 1001, but the model was trained on 1000 times"):
        made.grid(1001)
    with pytest.raises(ValueError, match="depend on the resolution"):
        process(use_dynamic_shifting=True).grid(4)


def read(tmp_path, **config):
    (tmp_path / "scheduler").mkdir(exist_ok=True)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return load_flow_scheduler(tmp_path, config.get("_class_name", "FlowMatchEulerDiscreteScheduler"))


def test_a_config_is_read(tmp_path):
    found = read(tmp_path, shift=3.0, shift_terminal=None, stochastic_sampling=True)
    assert found.config["shift"] == 3.0
    assert not found.config["stochastic_sampling"]


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"_class_name": "DDIMScheduler"}, "scheduler is a DDIMScheduler, but this version reads the times of flow"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "is a FlowMatchHeunDiscreteScheduler"),
        ({"shift": "3"}, "says shift: '3', but its value must be of type int or float"),
        ({"shift": 0}, "says shift 0: expected a number above 0"),
        ({"num_train_timesteps": 0}, "says num_train_timesteps 0: expected a number above 0"),
        ({"use_dynamic_shiftin": True}, "has a key 'use_dynamic_shiftin'.*did you mean 'use_dynamic_shifting'"),
        ({"invert_sigmas": True}, "says invert_sigmas"),
        ({"shift_terminal": 1.0}, "says shift_terminal 1.0: expected a number from 0 to below 1"),
        ({"max_image_seq_len": 256}, "the same base_image_seq_len and max_image_seq_len"),
        ({"time_shift_type": "cubic"}, "does not make a FlowMatchEulerDiscreteScheduler: ValueError"),
        ({"use_karras_sigmas": True, "use_exponential_sigmas": True}, "does not make a FlowMatchEuler"),
    ],
)
def test_configs_that_cannot_be_read(tmp_path, config, match):
    with pytest.raises(ModelError, match=match):
        read(tmp_path, **config)
