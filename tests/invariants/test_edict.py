"""EDICT's coupled chain: against hand numbers, the paper's formulas under plain autograd, and its own inverse."""

import weakref
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from smooth import warmth

import tiny
import tiny_flow
from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.base import Task
from tastemaker.algorithms.draft import DRaFT
from tastemaker.algorithms.windows import Whole
from tastemaker.config.schema import Config, Optimizer, Sampling
from tastemaker.diffusion import edict
from tastemaker.diffusion.backprop import chain
from tastemaker.diffusion.edict import coupled_chain, coupled_step, inverse_step, mixed, mixed_gradients, unmixed
from tastemaker.diffusion.sde import ddim, make_sde
from tastemaker.errors import ConfigError, DivergedError
from tastemaker.models import wrap_pipeline
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.schedulers import SchedulerProcess
from tastemaker.models.stable_diffusion import SD
from tastemaker.models.tuning import Tuning
from tastemaker.rewards.base import as_reward
from tastemaker.training.plan import round_calls
from tastemaker.training.setup import run_sde
from tastemaker.types import Draw, Rollout, Rows

T, P = 5, 0.93
DRAW = Draw(3, 1, ("cat", "dog"), (0, 1), (0, 0))


def tuned(model, dtype):
    model.tune(Tuning(rank=2))
    model.network.to(dtype)
    random = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.weights.trainable().items()):
        if "lora_B" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=random))
    return model


def latent(dtype=torch.float64, prediction="epsilon", **scheduler):
    """A small latent U-Net with adapters that do something."""
    model = LatentUNet(SD, tiny.pipeline(prediction_type=prediction))
    if scheduler:
        model.pipeline.scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config, **scheduler)
        model.process = SchedulerProcess(model.pipeline.scheduler)
    model.pipeline.vae.to(dtype)
    return tuned(model, dtype)


def conditioned(model, guidance=3.0):
    cond = model.encode(DRAW.prompts, guidance)
    kind = next(model.network.parameters()).dtype
    return replace(cond, states={name: values.to(kind) for name, values in cond.states.items()})


def grid(model, steps=T):
    return ddim(model.process.grid(steps, model.latent_shape), 0.0)


def sampled(model, grad_steps, steps=T, dtype=torch.float64, **more):
    return coupled_chain(
        model, conditioned(model), DRAW, grid(model, steps), grad_steps, **({"mixing": P, "dtype": dtype} | more)
    )


def gradient(model, loss):
    model.network.zero_grad()
    loss.backward()
    parameters = model.weights.trainable()
    return torch.cat([parameters[name].grad.flatten() for name in sorted(parameters)])


def off(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_a_step_by_hand():
    """x = 1, y = 2, slope 0.5, shift(o) = o^2, p = 0.75.

    x first: x = 0.5 + 4 = 4.5, y = 1 + 4.5^2 = 21.25; mixed x = 0.75 * 4.5 + 0.25 * 21.25 = 8.6875 and
    y = 0.75 * 21.25 + 0.25 * 8.6875 = 18.109375. y first: y = 1 + 1 = 2, x = 0.5 + 4 = 4.5; x = 3.875, y = 2.46875.
    """
    x, y = torch.tensor([1.0]), torch.tensor([2.0])
    for y_first, expected in ((False, (8.6875, 18.109375)), (True, (3.875, 2.46875))):
        after = coupled_step(x, y, 0.5, torch.square, 0.75, y_first)
        assert (after[0].item(), after[1].item()) == expected
        before = inverse_step(*after, 0.5, torch.square, 0.75, y_first)
        assert (before[0].item(), before[1].item()) == (1.0, 2.0)


def test_mixing_and_its_gradients_by_hand():
    """With p = 0.75 and gradients 1 and 2: x' takes part in y', so that its own is 1 + 0.25 * 2 = 1.5; x has 0.75 of
    it, and y 0.75 * 2 + 0.25 * 1.5 = 1.875."""
    x, y = torch.tensor([4.0]), torch.tensor([8.0])
    after = mixed(x, y, 0.75)
    assert (after[0].item(), after[1].item()) == (5.0, 7.25)
    assert [part.item() for part in unmixed(*after, 0.75)] == [4.0, 8.0]
    found = mixed_gradients(torch.tensor([1.0]), torch.tensor([2.0]), 0.75)
    assert [part.item() for part in found] == [1.125, 1.875]


def by_the_papers_formulas(model, grad_steps, guidance=3.0, steps=T, prediction="epsilon"):
    """x_0 by Eq. 14 of the paper, on the U-Net and diffusers' table of alphas alone; a graph through everything.

    For v the step is the rotation that DDIM is there: x' = cos x - sin v with cos = alpha' alpha + sigma' sigma.
    """
    scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    cond = conditioned(model, guidance)
    x = y = DRAW.noise(0, model.latent_shape).double()
    for step, t in enumerate(scheduler.timesteps):

        def output(x, t=t, step=step):
            ask = lambda text: model.network(x, t, encoder_hidden_states=text).sample  # noqa: E731
            x = x.to(next(model.network.parameters()).dtype)
            plain = ask(cond.unconditional()["text"])
            made = (plain + guidance * (ask(cond["text"]) - plain)).double()
            return made if step in grad_steps else made.detach()

        now, before = scheduler.alphas_cumprod[t].double(), int(t) - 1000 // steps
        then = (scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod).double()
        if prediction == "epsilon":
            a = (then / now).sqrt()
            b = (1 - then).sqrt() - (then * (1 - now) / now).sqrt()
        else:
            a = (then * now).sqrt() + ((1 - then) * (1 - now)).sqrt()
            b = ((1 - then) * now).sqrt() - (then * (1 - now)).sqrt()
        if step % 2:
            y = a * y + b * output(x)
            x = a * x + b * output(y)
        else:
            x = a * x + b * output(y)
            y = a * y + b * output(x)
        x = P * x + (1 - P) * y
        y = P * y + (1 - P) * x
    return x


@pytest.mark.parametrize(
    ("grad_steps", "prediction"), [([0, 1, 2, 3, 4], "epsilon"), ([1, 3], "epsilon"), ([2, 4], "v_prediction")]
)
def test_latents_and_gradients_are_those_of_the_papers_formulas_under_plain_autograd(grad_steps, prediction):
    model = latent(prediction=prediction)
    mine, theirs = sampled(model, grad_steps).x0, by_the_papers_formulas(model, grad_steps, prediction=prediction)
    assert off(mine, theirs) < 1e-10
    one, two = (gradient(model, warmth(model.decode(x), DRAW.prompts).sum()) for x in (mine, theirs))
    assert two.norm() > 1e-3
    assert off(one, two) < 1e-10


def test_gradients_in_float32():
    model = latent(torch.float32)
    mine, theirs = sampled(model, range(T), dtype=torch.float32).x0, by_the_papers_formulas(model, range(T))
    assert mine.dtype == torch.float32
    one, two = (gradient(model, warmth(model.decode(x.float()), DRAW.prompts).sum()) for x in (mine, theirs))
    assert off(one, two) < 1e-5


def test_a_flow_takes_eulers_steps():
    """x' = x + (s' - s) v(y), by the scheduler's own noise levels."""
    model = tuned(wrap_pipeline(tiny_flow.sd3()), torch.float32)
    sde = make_sde(model, 3, 0.0)
    assert edict.slopes(model, sde) == pytest.approx([1.0] * 3, rel=1e-12)
    cond, process = conditioned(model), sde.grid
    x = y = DRAW.noise(0, model.latent_shape).double()
    for step in range(3):

        def velocity(x, step=step):
            t = process.times[step].expand(2)
            plain = model.predict(x.float(), t, cond.unconditional()).double()
            return plain + 3.0 * (model.predict(x.float(), t, cond.unguided()).double() - plain)

        ds = process.sigma_next[step] - process.sigma[step]
        if step % 2:
            y = y + ds * velocity(x)
            x = x + ds * velocity(y)
        else:
            x = x + ds * velocity(y)
            y = y + ds * velocity(x)
        x = P * x + (1 - P) * y
        y = P * y + (1 - P) * x
    mine = coupled_chain(model, cond, DRAW, sde, range(3), mixing=P).x0
    assert off(mine, x) < 1e-5
    one, two = (gradient(model, made.square().sum()) for made in (mine, x))
    assert two.norm() > 1e-3
    assert off(one, two) < 1e-5


def test_a_pixel_model_without_clipping():
    model = tuned(wrap_pipeline(tiny.pixels(clip_sample=False)), torch.float32)
    draw, sde = Draw(3, 1, ("", ""), (0, 1), (0, 0)), grid(model)
    cond = model.encode(draw.prompts, 1.0)
    one = gradient(model, coupled_chain(model, cond, draw, sde, range(T), mixing=P).x0.square().sum())
    # The same chain with a graph through everything.
    run = edict._Run(model, cond, sde, frozenset(range(T)), edict.slopes(model, sde), P, False, torch.float32)
    x = draw.noise(0, model.latent_shape).double()
    two = gradient(model, run.forward(x, x, range(T))[0].square().sum())
    assert two.norm() > 1e-3
    assert off(one, two) < 1e-5


def test_the_two_latents_stay_together_and_near_ddim():
    """As coupled as DDIM's own discretisation: with more steps the images come closer to its."""
    model = latent()
    gaps = []
    for steps in (6, 24):
        ordinary = chain(model, conditioned(model), DRAW, grid(model, steps), [], dtype=torch.float64).x0
        gaps.append(off(sampled(model, [], steps).x0, ordinary))
    assert 0 < gaps[1] < 0.5 * gaps[0]


@pytest.mark.parametrize(("steps", "bound"), [(20, 1e-11), (50, 1e-10)])
def test_states_are_found_again(steps, bound, monkeypatch):
    """The first pair after a whole inversion; the network computes in float32, the states are float64."""
    found = []
    measured = edict.inversion_error
    monkeypatch.setattr(edict, "inversion_error", lambda *pairs: found.append(measured(*pairs)) or found[-1])
    model = latent(torch.float32)
    sampled(model, range(steps), steps, dtype=torch.float32).x0.sum().backward()
    assert len(found) == 1
    assert 0 < found[0] < bound


def test_a_network_that_answers_differently_is_noticed_before_weights_are_touched():
    model = latent(torch.float32)
    denoise, calls = model.denoise, []

    def drifting(x, t, cond):
        calls.append(len(calls))
        return denoise(x, t, cond) * (1 + 1e-3 * len(calls))

    model.denoise = drifting
    loss = sampled(model, range(T), dtype=torch.float32).x0.sum()
    with pytest.raises(DivergedError, match=r"found by inversion are off by .* of their size, and 0\.001 is the limit"):
        loss.backward()


def test_the_amplification_by_hand():
    """x - y shrinks to p^2 of itself in a mixing layer, so that the inverse makes it 1 / p^2 as large: with p = 0.5 by
    4 a step, times 1 / slope."""
    one, two = (edict.amplification([0.5] * steps, 0.5) for steps in (20, 21))
    assert two / one == pytest.approx(2 * 4, rel=1e-6)
    assert edict.amplification([1.0] * 7, 1.0) == pytest.approx(1.0)


def live(model, steps, made):
    """The largest number of bytes that graphs have kept at once, parameters aside, in a forward and backward pass."""
    parameters = {p.data_ptr() for p in model.network.parameters()} | {p.data_ptr() for p in model.network.buffers()}
    now, most = [0], [0]

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor
            size = 0 if tensor.data_ptr() in parameters else tensor.numel() * tensor.element_size()
            now[0] += size
            most[0] = max(most[0], now[0])
            weakref.finalize(self, lambda: now.__setitem__(0, now[0] - size))

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        x0 = made(steps).x0
        before = now[0]
        x0.square().sum().backward()
    return before, most[0]


def test_memory_does_not_grow_with_the_steps():
    model = latent(torch.float32)
    coupled = lambda steps: sampled(model, range(steps), steps, dtype=torch.float32)  # noqa: E731
    short, long = live(model, 2, coupled), live(model, 6, coupled)
    assert short == long
    # Four pairs' halves in float64 between the passes: the first pair and the last one.
    assert short[0] == 4 * DRAW.noise(0, model.latent_shape).numel() * 8
    kept = lambda steps: chain(  # noqa: E731
        model, conditioned(model), DRAW, grid(model, steps), range(steps), recompute=False
    )
    assert live(model, 6, kept)[1] > 2 * live(model, 2, kept)[1] > 2 * long[1]
    # One call of the network at a time, as with `step`.
    stepwise = lambda steps: chain(model, conditioned(model), DRAW, grid(model, steps), range(steps))  # noqa: E731
    assert long[1] < 1.2 * live(model, 2, stepwise)[1]


def test_the_network_is_asked_twice_a_step_and_again_where_the_gradient_flows():
    model = latent()
    asked, denoise = [], model.denoise

    def counting(x, t, cond):
        asked.append(torch.is_grad_enabled())
        return denoise(x, t, cond)

    model.denoise = counting
    x0 = sampled(model, [1, 3]).x0
    assert asked == [False] * 2 * T
    x0.sum().backward()
    # Back from step 4 to step 1, of which 3 and 1 are trained.
    assert asked[2 * T :] == [False, False, True, True, False, False, True, True]


def test_blocks_can_be_recomputed_as_well():
    plain, blocks = latent(), latent()
    blocks.network.enable_gradient_checkpointing()
    blocks.network.train()
    one, two = (gradient(model, sampled(model, range(T)).x0.sum()) for model in (plain, blocks))
    assert off(two, one) < 1e-10


def test_the_distance_to_the_reference():
    """The mean over the half-steps of the trained steps, in units of the predicted noise, and its gradient."""
    model = latent()
    made = sampled(model, [2, 4], compare=True)
    ask, gaps = model.network.forward, []

    def noting(x, t, **more):
        found = ask(x, t, **more)
        with torch.no_grad(), model.weights.reference():
            far = ask(x.detach(), t, **more)[0]
        gaps.append((int(t), found[0] - far))
        return found

    model.network.forward = noting
    by_the_papers_formulas(model, [2, 4])
    model.network.forward = ask
    times = model.process.grid(T).times.tolist()
    seen = [gap for t, gap in gaps if times.index(t) in (2, 4)]
    # Calls come in pairs, without the prompt and with it: u + 3 (c - u).
    guided = [u + 3.0 * (c - u) for u, c in zip(seen[::2], seen[1::2], strict=True)]
    assert len(guided) == 4
    distance = torch.stack([gap.square().flatten(1).mean(dim=1) for gap in guided]).mean(dim=0)
    assert made.divergence.tolist() == pytest.approx(distance.tolist(), rel=1e-6)
    assert off(gradient(model, made.divergence.sum()), gradient(model, distance.sum())) < 1e-6


def task(model):
    return Task(model, grid(model), reward=as_reward(warmth))


def rows(model, grad_steps, images=(0, 1)):
    mask = torch.tensor([[step in grad_steps for step in range(T)]] * len(images))
    return Rows(
        Rollout(model.encode(DRAW.prompts, 3.0), DRAW), torch.tensor(images),
        torch.zeros(len(images), dtype=torch.int64), grad_steps=mask,
    )  # fmt: skip


def test_micro_batches_add_up_to_the_batch():
    model = latent(torch.float32)
    algorithm = AlignProp(checkpointing="edict", kl=0.3)
    losses = {images: algorithm.loss(task(model), rows(model, [1, 2, 3, 4], images)) for images in ((0, 1), (0,), (1,))}
    assert losses[0, 1][1]["divergence"].min() > 0
    whole = gradient(model, losses[0, 1][0].sum())
    parts = gradient(model, losses[0,][0].sum()) + gradient(model, losses[1,][0].sum())
    assert off(parts, whole) < 1e-4


def test_alignprop_and_draft_sample_by_it():
    model = latent(torch.float32)
    by_hand = -warmth(model.decode(sampled(model, [3, 4], dtype=torch.float32, mixing=0.9).x0), DRAW.prompts)
    for algorithm in (
        AlignProp(checkpointing="edict", mixing_coeff=0.9),
        DRaFT(checkpointing="edict", mixing_coeff=0.9),
    ):
        loss, _ = algorithm.loss(task(model), rows(model, [3, 4]))
        assert loss.tolist() == pytest.approx(by_hand.tolist(), rel=1e-6)
        assert algorithm.calls([3, 4], T) == (6, 4)


def test_a_plan_counts_both_calls_of_a_step():
    """6 images in micro-batches of 4 and 2, 5 steps of which 2 learn, guidance: 3 x 2 without graph, 2 x 2 with."""
    config = Config(
        algorithm=AlignProp(truncation="fixed", last=2, checkpointing="edict"), reward="smooth:warmth",
        sampling=Sampling(steps=T, samples=6, eta=0.0), optimizer=Optimizer(updates=1, rows=4),
    )  # fmt: skip
    calls = round_calls(config, (), 1)
    assert (calls.forward, calls.backward) == ({8: 6, 4: 6}, {8: 4, 4: 4})


def test_what_cannot_be_inverted_is_refused():
    edicted = AlignProp(checkpointing="edict")
    with pytest.raises(ConfigError, match=r"sampling.eta is 1, but algorithm.checkpointing = edict inverts"):
        Config(algorithm=edicted, reward="smooth:warmth")
    with pytest.raises(ConfigError, match="DRaFT-LV and has no chain to invert"):
        DRaFT(checkpointing="edict", noises=1)
    for kind in (AlignProp, DRaFT):
        with pytest.raises(
            ConfigError, match=r"algorithm.mixing_coeff is 0.9, which belongs to .* edict, but .* block"
        ):
            kind(mixing_coeff=0.9)
        with pytest.raises(ConfigError, match=r"algorithm.mixing_coeff is 0\.0, but must lie in \(0, 1\]"):
            kind(checkpointing="edict", mixing_coeff=0.0)
    config = Config(algorithm=edicted, reward="smooth:warmth", sampling=Sampling(steps=T, eta=0.0), window=Whole())
    model = latent(torch.float32)
    assert len(run_sde(config, model)) == T
    with pytest.raises(ConfigError, match=r"but these have noise: set sampling\.eta to 0"):
        coupled_chain(model, conditioned(model), DRAW, ddim(model.process.grid(T), 0.5), [4], mixing=P)
    with pytest.raises(ConfigError, match=r"scheduler clips its estimates \(clip_sample\)"):
        run_sde(config, latent(torch.float32, clip_sample=True))
    with pytest.raises(ConfigError, match="depends on the network's output alone"):
        run_sde(config, latent(torch.float32, "sample", set_alpha_to_one=True))
    wide = replace(config, algorithm=replace(edicted, mixing_coeff=0.2))
    with pytest.raises(ConfigError, match=r"inverse of 20 steps with algorithm.mixing_coeff = 0.2 enlarges .* 1e\+27"):
        run_sde(replace(wide, sampling=replace(wide.sampling, steps=20)), model)
