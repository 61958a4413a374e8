"""Pixel models that predict their variance: their first half is sampled and trained, their second half stays."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

import tiny
from tastemaker.algorithms.base import Task
from tastemaker.diffusion.sampler import sample
from tastemaker.diffusion.sde import ddim
from tastemaker.evaluation.images import images
from tastemaker.models import load_model
from tastemaker.models.check import check_model
from tastemaker.models.pixel import PixelUNet
from tastemaker.models.tuning import Tuning
from tastemaker.types import Draw, all_rows

SHAPE = (3, 16, 16)


def pipeline(**scheduler):
    settings = {"variance_type": "learned_range", "beta_schedule": "squaredcos_cap_v2"} | scheduler
    return tiny.pixels(channels=3, classes=4, unet={"out_channels": 6}, **settings)


def model(**scheduler) -> PixelUNet:
    return PixelUNet(pipeline(**scheduler))


def draw(*prompts):
    return Draw(0, 1, prompts, tuple(range(len(prompts))), (0,) * len(prompts))


@pytest.mark.parametrize("variance", ["learned_range", "learned", "fixed_small"])
@torch.no_grad()
def test_deterministic_images_are_those_of_the_first_half(variance):
    """Whatever `variance_type` says, which only DDPM's own steps read."""
    made, chosen = model(variance_type=variance), draw("3", "0")
    assert made.latent_shape == SHAPE
    ours = images(made, chosen, ddim(made.process.grid(5), 0.0), 1.0, batch=2)
    scheduler = DDIMScheduler.from_config(made.pipeline.scheduler.config)
    scheduler.set_timesteps(5)
    x = chosen.noise(0, SHAPE)
    for t in scheduler.timesteps:
        answer = made.pipeline.unet(x, t, torch.tensor([3, 0])).sample
        assert answer.shape == (2, 6, 16, 16)
        x = scheduler.step(answer[:, :3], t, x, eta=0.0).prev_sample
    torch.testing.assert_close(ours, (x / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)


@torch.no_grad()
def test_steps_with_noise_are_those_of_guided_diffusions_ddim_sample():
    """By its definition, without clipping (where it makes the noise anew from the clipped x_0, and diffusers does not):

    sigma = eta sqrt((1 - a_p) / (1 - a)) sqrt(1 - a / a_p), and the mean sqrt(a_p) x_0 + sqrt(1 - a_p - sigma^2) eps.
    """
    made, eta = model(clip_sample=False), 0.7
    grid = made.process.grid(25)
    x, t = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)), grid.times[10]
    assert t.item() == 960 - 10 * 40
    cond = made.encode(["1", "2"], 1.0)
    mean, std = ddim(grid, eta).step(x.double(), made.denoise(x, t.expand(2), cond), 10)
    cumulative = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    a, a_p = cumulative[560].item(), cumulative[520].item()
    eps = made.pipeline.unet(x, t, torch.tensor([1, 2])).sample[:, :3].double()
    x0 = (x.double() - math.sqrt(1 - a) * eps) / math.sqrt(a)
    sigma = eta * math.sqrt((1 - a_p) / (1 - a)) * math.sqrt(1 - a / a_p)
    assert std.flatten().tolist() == pytest.approx([sigma] * std.numel(), rel=1e-5)
    expected = math.sqrt(a_p) * x0 + math.sqrt(1 - a_p - sigma**2) * eps
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)


def test_the_family_keeps_the_contract():
    assert check_model(model, ("1", "2"), guided=False) == []


def loss(made: PixelUNet) -> torch.Tensor:
    """What likelihood methods differentiate, of all steps of two images."""
    sde = ddim(made.process.grid(4), 1.0)
    rollout = sample(made, made.encode(["1", "2"], 1.0), draw("1", "2"), sde, sde.stochastic())
    rollout = replace(rollout, reward=torch.zeros(2), advantage=torch.ones(2))
    rows = all_rows(rollout).transitions()
    ratio = (Task(made, sde).log_prob(rows) - rows.logp).exp()
    assert (ratio - 1).abs().max() < 5e-6
    return ratio.sum()


def test_no_gradient_reaches_the_predicted_variance():
    made = model()
    made.tune(Tuning(mode="full"))
    loss(made).backward()
    unet = made.pipeline.unet
    for gradient in (unet.conv_out.weight.grad, unet.conv_out.bias.grad):
        assert gradient[:3].abs().min() > 0
        assert gradient[3:].abs().max() == 0
    assert all(parameter.grad is not None for parameter in unet.parameters())


def test_adapters_learn_and_the_base_model_is_without_them():
    made = model()
    made.tune(Tuning())
    loss(made).backward()
    assert any(parameter.grad.abs().max() > 0 for parameter in made.weights.trainable().values())
    assert all(parameter.grad is None for parameter in made.network.parameters() if not parameter.requires_grad)


def test_a_folder_is_loaded_and_what_is_trained_is_diffusers_own(tmp_path):
    pipeline().save_pretrained(tmp_path / "base")
    made, x, t = load_model(str(tmp_path / "base")), torch.randn(1, *SHAPE), torch.tensor([500])
    made.tune(Tuning(mode="full"))
    with torch.no_grad():
        for parameter in made.weights.trainable().values():
            parameter += 0.01
    made.weights.save(tmp_path / "model")
    theirs = UNet2DModel.from_pretrained(tmp_path / "model/unet")
    with torch.no_grad():
        answer = theirs(x, t, torch.tensor([1])).sample
        ours = made.predict(x, t, made.encode(["1"], 1.0))
    assert answer.shape == (1, 6, 16, 16)
    torch.testing.assert_close(answer[:, :3], ours)


def test_diffusers_pipeline_samples_a_trained_network_by_its_own_variance(tmp_path):
    """The second half is saved with the first, and is what DDPM's steps with `learned_range` draw their noise by."""
    tiny.pixels(channels=3, unet={"out_channels": 6}, variance_type="learned_range").save_pretrained(tmp_path / "base")
    made, shown = load_model(str(tmp_path / "base")), []
    made.tune(Tuning(mode="full"))
    for number, change in enumerate((0.0, 1.0)):
        with torch.no_grad():
            made.pipeline.unet.conv_out.bias[3:] += change
        made.weights.save(tmp_path / f"model-{number}")
        pipe = DDPMPipeline.from_pretrained(tmp_path / "base")
        pipe.unet = UNet2DModel.from_pretrained(tmp_path / f"model-{number}/unet")
        pipe.set_progress_bar_config(disable=True)
        random = torch.Generator().manual_seed(0)
        shown.append(pipe(generator=random, num_inference_steps=4, output_type="np").images)
    assert shown[0].shape == (1, 16, 16, 3)
    assert abs(shown[0] - shown[1]).max() > 0.01
