"""Networks whose process ends at noise alone (Lin et al. 2023), of Stable Diffusion 2.x's kind and of SDXL's."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import tiny
from tastemaker.algorithms.base import Task
from tastemaker.diffusion.sampler import sample
from tastemaker.diffusion.sde import ddim
from tastemaker.errors import ModelError
from tastemaker.evaluation.images import images
from tastemaker.models import load_model
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.stable_diffusion import SD
from tastemaker.models.stable_diffusion_xl import SDXL
from tastemaker.models.tuning import Tuning
from tastemaker.types import Draw, all_rows

ZERO = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
DRAW = Draw(0, 1, ("a cat", "two dogs"), (0, 1), (0, 0))
MADE = {"sd": lambda: LatentUNet(SD, tiny.pipeline(**ZERO)), "xl": lambda: LatentUNet(SDXL, tiny.xl(**ZERO))}


@pytest.mark.parametrize("family", MADE)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_same_noise_gives_the_images_of_diffusers_pipeline(family, eta, monkeypatch):
    model = MADE[family]()
    height, width = (model.scale * side for side in model.latent_shape[-2:])
    grid = model.process.grid(5)
    assert grid.alpha[0] == 0
    ours = images(model, DRAW, ddim(grid, eta), 4.0, batch=2)
    noises = iter([DRAW.noise(step + 1, model.latent_shape) for step in range(5)])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddim.randn_tensor", lambda *a, **k: next(noises))
    theirs = model.pipeline(
        list(DRAW.prompts), num_inference_steps=5, guidance_scale=4.0, eta=eta, height=height, width=width,
        latents=DRAW.noise(0, model.latent_shape), output_type="pt",
    ).images  # fmt: skip
    assert ours.std() > 0.01
    assert (ours - theirs).abs().max() < 1e-3


@pytest.mark.parametrize("family", MADE)
def test_the_first_step_has_a_likelihood_and_a_gradient(family):
    """There x is noise alone, and the estimate of x_0 is -v."""
    model = MADE[family]()
    model.tune(Tuning())
    sde = ddim(model.process.grid(5), 1.0)
    rollout = sample(model, model.encode(DRAW.prompts, 4.0), DRAW, sde, sde.stochastic())
    rollout = replace(rollout, reward=torch.zeros(2), advantage=torch.ones(2))
    rows = all_rows(rollout)
    first = rows.select(rows.step_index == 0).transitions()
    ratio = (Task(model, sde).log_prob(first) - first.logp).exp()
    assert (ratio - 1).abs().max() < 1e-6
    ratio.sum().backward()
    gradients = [parameter.grad for parameter in model.weights.trainable().values() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert max(gradient.abs().max() for gradient in gradients) > 0


def test_predicted_noise_is_refused_in_one_sentence(tmp_path):
    tiny.xl(**ZERO).save_pretrained(tmp_path)
    file = tmp_path / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "epsilon"}))
    with pytest.raises(ModelError, match=r"ends at noise alone .* predicted noise says nothing about an image"):
        load_model(str(tmp_path))
