"""The sampler: the images of diffusers' own pipeline, the ratio of 1, and noise that depends on its place alone."""

from dataclasses import replace

import pytest
import torch

import tiny
from tastemaker import noise, tree
from tastemaker.algorithms.base import Task
from tastemaker.diffusion import losses
from tastemaker.diffusion.sampler import LocalSampler, sample
from tastemaker.diffusion.sde import ddim
from tastemaker.evaluation.evaluate import generate
from tastemaker.evaluation.images import images
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.stable_diffusion import SD
from tastemaker.models.tuning import Tuning
from tastemaker.types import Draw, all_rows

PROMPTS = ("a cat", "two dogs", "a cat", "fish")


def draw(seed=0, round=1, prompts=PROMPTS):
    return Draw(seed, round, prompts, tuple(range(len(prompts))), (0,) * len(prompts))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_same_noise_gives_the_images_of_diffusers_pipeline(eta, guidance, prediction, monkeypatch):
    pipeline = tiny.pipeline(prediction_type=prediction)
    model, chosen = LatentUNet(SD, pipeline), draw()
    ours = images(model, chosen, ddim(model.process.grid(10), eta), guidance, batch=4)
    noises = iter([chosen.noise(step + 1, (4, 8, 8)) for step in range(10)])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddim.randn_tensor", lambda *a, **k: next(noises))
    theirs = pipeline(
        list(PROMPTS), num_inference_steps=10, guidance_scale=guidance, eta=eta, height=32, width=32,
        latents=chosen.noise(0, (4, 8, 8)), output_type="pt",
    ).images  # fmt: skip
    assert ours.std() > 0.01  # a grey image would agree too
    assert (ours - theirs).abs().max() < 1e-3


def test_a_sampler_without_noise_keeps_its_steps_and_has_no_likelihoods():
    model, chosen = LatentUNet(SD, tiny.pipeline()), draw()
    sde, cond = ddim(model.process.grid(4), 0.0), model.encode(PROMPTS, 5.0)
    plain, kept = (sample(model, cond, chosen, sde, keep) for keep in ((), (1, 2, 3)))
    assert sde.stochastic() == []
    assert torch.equal(plain.x0, kept.x0)
    assert torch.equal(kept.trajectory.latents[:, -1], kept.x0)
    assert kept.trajectory.latents.shape[1] == 4
    assert kept.logp.isnan().all()


def rollout_and_task(model, chosen, batch=4, steps=10):
    grid = model.process.grid(steps)
    sde = ddim(grid, 1.0)
    made = generate(model, LocalSampler(model, sde), chosen, guidance=5.0, batch=batch, keep=sde.stochastic())
    rollout = replace(made.rollout, reward=torch.zeros(len(chosen)), advantage=torch.ones(len(chosen)))
    return rollout, Task(model, ddim(grid, 1.0))


@pytest.mark.parametrize("batch", [1, 4])
def test_ratio_is_one_right_after_sampling(model, batch):
    """In one batch or row by row, whatever batch the images were sampled in."""
    model.tune(Tuning())
    rollout, task = rollout_and_task(model, draw(), batch)
    rows = all_rows(rollout)
    with torch.no_grad():
        for size in (1, 7, len(rows)):
            for start in range(0, len(rows), size):
                part = rows.select(slice(start, start + size))
                ratio = (task.log_prob(part.transitions()) - part.transitions().logp).exp()
                assert (ratio - 1).abs().max() < 1e-6


def test_kept_steps_are_the_chain_itself(model):
    rollout, task = rollout_and_task(model, draw())
    assert rollout.latents.shape == (4, 11, 4, 8, 8)
    assert rollout.latents.dtype == torch.float32
    assert rollout.logp.dtype == torch.float64
    torch.testing.assert_close(rollout.latents[:, -1], rollout.x0)
    torch.testing.assert_close(rollout.latents[:, 0], draw().noise(0, (4, 8, 8)))
    # The stored log-probability is that of the noise which was drawn: -z^2/2 - ln std - ln sqrt(2 pi), averaged.
    std = ddim(task.sde.grid, 1.0).std
    for step in range(10):
        z = draw().noise(step + 1, (4, 8, 8)).double()
        expected = (-(z**2) / 2).flatten(1).mean(1) - std[step].log() - 0.9189385332
        torch.testing.assert_close(rollout.logp[:, step], expected, atol=1e-5, rtol=1e-5)


def test_a_window_keeps_only_its_own_steps(model):
    chosen, grid = draw(), model.process.grid(10)
    whole, _ = rollout_and_task(model, chosen)
    cond = model.encode(chosen.prompts, 5.0)
    part = sample(model, cond, chosen, ddim(grid, 1.0), keep=[6, 7, 8])
    assert part.steps.tolist() == [6, 7, 8]
    torch.testing.assert_close(part.latents, whole.latents[:, 6:10], atol=0, rtol=0)
    torch.testing.assert_close(part.logp, whole.logp[:, 6:9], atol=0, rtol=0)


def test_noise_depends_on_its_place_alone():
    four, one = draw().noise(3, (4, 8, 8)), draw().select([2]).noise(3, (4, 8, 8))
    assert torch.equal(four[2:3], one)
    places = [(0, 1, 0, 0, 0), (1, 1, 0, 0, 0), (0, 2, 0, 0, 0), (0, 1, 1, 0, 0), (0, 1, 0, 1, 0), (0, 1, 0, 0, 1)]
    drawn = [noise.normal((256,), *place) for place in places]
    for i, a in enumerate(drawn):
        for b in drawn[i + 1 :]:
            assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.3
    everything = torch.cat([noise.normal((4096,), 0, 1, p, 0, 0) for p in range(50)])
    assert everything.mean().abs() < 0.01
    assert (everything.std() - 1).abs() < 0.01


def test_guidance_by_hand(model, monkeypatch):
    """eps_u = 1, eps_c = 2, w = 5: 1 + 5 (2 - 1) = 6; and with w = 1 only the conditional half is computed."""
    sizes = []

    def predict(x, t, cond):
        sizes.append(len(x))
        half = torch.full_like(x, 2.0)
        if len(x) == 4:
            half[:2] = 1.0
        return half

    monkeypatch.setattr(model, "predict", predict)
    cond = model.encode(["a cat", "a dog"], 5.0)
    x, t = torch.zeros(2, 4, 8, 8), torch.tensor([500, 500])
    a = model.process.scheduler.alphas_cumprod[500]
    expected = -((1 - a) / a).sqrt()
    assert model.denoise(x, t, cond)[0, 0, 0, 0].item() == pytest.approx(6 * expected.item(), rel=1e-6)
    unguided = model.denoise(x, t, cond.unguided())
    assert unguided[0, 0, 0, 0].item() == pytest.approx(2 * expected.item(), rel=1e-6)
    assert sizes == [4, 2]


def test_log_prob_has_the_gradient_of_finite_differences(model):
    """In float64 through the whole of guidance, x_0 estimate, transition and log-density."""
    model.pipeline.unet.double()
    parameter = next(iter(model.pipeline.unet.conv_out.parameters())).requires_grad_()
    grid = model.process.grid(10)
    random = torch.Generator().manual_seed(0)
    x, x_next = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64, generator=random).unbind()
    cond = tree.to(model.encode(["a cat"], 5.0), torch.float64)
    cond = replace(cond, index=cond.index.long())
    predict = lambda x, t, cond: model.network(x, t, encoder_hidden_states=cond["text"], return_dict=False)[0]  # noqa: E731
    model.predict = predict
    step = torch.tensor([5])

    def log_prob():
        mean, std = ddim(grid, 1.0).step(x, model.denoise(x, grid.times[step], cond), step)
        return losses.gaussian_logp(x_next, mean, std).sum()

    (gradient,) = torch.autograd.grad(log_prob(), parameter)
    place, h = (0, 3, 1, 1), 1e-6
    with torch.no_grad():
        parameter[place] += h
        above = log_prob()
        parameter[place] -= 2 * h
        below = log_prob()
    assert gradient[place].item() == pytest.approx(((above - below) / (2 * h)).item(), rel=1e-5)
