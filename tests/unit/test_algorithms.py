"""Algorithms on a small U-Net, against second implementations that ask the U-Net directly."""

import math
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import logsigmoid

import tiny
from tastemaker.algorithms.awm import AWM
from tastemaker.algorithms.base import Task
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.dgpo import DGPO
from tastemaker.algorithms.diffusion_dpo import DiffusionDPO
from tastemaker.algorithms.diffusion_kto import DiffusionKTO
from tastemaker.algorithms.dpo import DPO
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.dppo import DPPO
from tastemaker.algorithms.grpo import GRPO
from tastemaker.algorithms.mapo import MaPO
from tastemaker.algorithms.nft import NFT
from tastemaker.algorithms.online_diffusion_dpo import OnlineDiffusionDPO
from tastemaker.algorithms.pg import PG
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.preference_pairs import pairs
from tastemaker.algorithms.rwr import RWR
from tastemaker.config.schema import Optimizer
from tastemaker.diffusion.process import Grid
from tastemaker.diffusion.sampler import sample
from tastemaker.diffusion.sde import ddim
from tastemaker.errors import ConfigError
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.pixel import PixelUNet
from tastemaker.models.stable_diffusion import SD
from tastemaker.models.tuning import Tuning
from tastemaker.models.value import DigitValue, value_network
from tastemaker.training.update import recomputed
from tastemaker.types import Cond, Draw, Noised, Rollout, Rows, Trajectory, all_rows

DRAW = Draw(0, 1, ("a cat", "a cat", "a dog", "a dog"), (0, 0, 1, 1), (0, 1, 0, 1))
STEPS, GUIDANCE = 5, 3.0
SAMPLED = [
    DDPO(estimator="is"), DDPO(estimator="sf"), PG(), DPOK(), DPOK(clamp="direct"), GRPO(), DPO(reference="sampler"),
    GRPO(ratio="normalised"), DPPO(),
    PPO(value="cnn", kl=0.1),
]  # fmt: skip


def made(double=True, trained=True, reduction="mean", **scheduler):
    """A model whose U-Net is in float64, its task, and a rollout of it with rewards and advantages."""
    model = LatentUNet(SD, tiny.pipeline(**scheduler))
    model.tune(Tuning(rank=2))
    if double:
        model.pipeline.unet.double()
        model.predict = lambda x, t, cond: model.network(  # type: ignore[method-assign]
            x.double(), t, encoder_hidden_states=cond["text"].double(), return_dict=False
        )[0]
    if trained:  # adapters start with B = 0, as the reference
        random = torch.Generator().manual_seed(7)
        for name, parameter in model.weights.trainable().items():
            if "lora_B" in name:
                parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    grid = model.process.grid(STEPS)
    cond = model.encode(DRAW.prompts, GUIDANCE)
    task = Task(model, ddim(grid, 1.0), reduction, rows=8, kl=0.1)
    rollout = sample(model, cond, DRAW, ddim(grid, 1.0), ddim(grid, 1.0).stochastic(), reduction=reduction)
    return task, replace(
        rollout, draw=DRAW, reward=torch.tensor([0.3, -0.6, 0.1, 2.0]), advantage=torch.tensor([0.5, -1.0, -0.4, 1.5]),
        group=torch.tensor([0, 0, 1, 1]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    return made()


def noise_prediction(model, x, t, text, guidance):
    """The guided output of the U-Net, from two passes of our own."""
    empty = model.encode([""], 1.0)["text"]
    ask = lambda states: model.pipeline.unet(x.double(), t, encoder_hidden_states=states.double()).sample  # noqa: E731
    unconditional = ask(empty.expand_as(text))
    return unconditional + guidance * (ask(text) - unconditional)


def base(model):
    """The U-Net without its adapters, by their scale: another way than the model's own."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.pipeline.unet.modules() if isinstance(module, LoraLayer)]
    assert layers

    class Off:
        def __enter__(self):
            for layer in layers:
                layer.scaling["default"] = 0.0

        def __exit__(self, *_):
            for layer in layers:
                layer.scaling["default"] = 1.0

    return Off()


def gradient(task, loss):
    """The gradient with respect to all adapters, in one vector."""
    parameters = list(task.model.weights.trainable().values())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def check_slope(task, function, at=3):
    """The gradient of `function()` against its central differences in a few weights of one matrix B."""
    name = next(name for name in task.model.weights.trainable() if "lora_B" in name)
    parameter, h = task.model.weights.trainable()[name], 1e-5
    (slope,) = torch.autograd.grad(function(), parameter)
    biggest = slope.abs().flatten().argsort(descending=True)[:at].tolist()
    with torch.no_grad():
        flat = parameter.view(-1)
        for place in biggest:
            flat[place] += h
            above = function().item()
            flat[place] -= 2 * h
            below = function().item()
            flat[place] += h
            assert slope.flatten()[place].item() == pytest.approx((above - below) / (2 * h), rel=1e-4)


def with_value(task, algorithm):
    training = algorithm.requirements.value
    if training is None:
        return task
    return replace(task, value=value_network(training.kind, task.model), value_states=training.states)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_ratio_is_one_before_the_first_update(reduction):
    """In pieces, where images were sampled together; sums of 256 elements as well, since nothing is rounded."""
    task, rollout = made(reduction=reduction)
    for algorithm in SAMPLED:
        own = with_value(task, algorithm)
        with torch.no_grad():
            rows = algorithm.prepare(own, rollout)
            for place in range(0, len(rows), 7):
                _, metrics = algorithm.loss(own, rows.select(slice(place, place + 7)))
                assert metrics["ratio_deviation"].max() < 1e-6, algorithm


def test_the_ratio_is_one_in_float32_too():
    task, rollout = made(double=False)
    for algorithm in SAMPLED:
        own = with_value(task, algorithm)
        with torch.no_grad():
            _, metrics = algorithm.loss(own, algorithm.prepare(own, rollout))
        assert metrics["ratio_deviation"].max() < 1e-6, algorithm


@pytest.mark.parametrize("elements", [256, 12288])
def test_what_is_left_of_the_ratio_in_float32_with_sums(elements):
    """0 where the network is asked in batches as large as in sampling: nothing else is rounded.

    Otherwise its own rounding, which depends on the batch: less than 1e-6 of its output, times c / sigma standard
    deviations of the step for a unit of noise (c as in `test_divergences_against_the_noise_predictions`; 14 and 72 at
    the step before the last of these five), times the root of the number of elements.
    """
    plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "sample_size": 64}
    model = LatentUNet(SD, tiny.pipeline()) if elements == 256 else PixelUNet(tiny.pixels(channels=3, unet=plain))
    assert math.prod(model.latent_shape) == elements
    model.tune(Tuning(rank=2, mode="lora" if elements == 256 else "full"))
    grid, cond = model.process.grid(STEPS), model.encode(DRAW.prompts, 1.0)
    task = Task(model, ddim(grid, 1.0), "sum")
    rollout = sample(model, cond, DRAW, ddim(grid, 1.0), ddim(grid, 1.0).stochastic(), reduction="sum")
    rows = all_rows(replace(rollout, draw=DRAW, advantage=torch.ones(4)))
    std = ddim(grid, 1.0).std
    moves = (grid.sigma_next**2 - std**2).clamp(min=0).sqrt() - grid.alpha_next * grid.sigma / grid.alpha
    share = (moves / std).abs()[ddim(grid, 1.0).stochastic()].max().item()
    for size, most in ((4, 0.0), (1, 1e-6 * share * math.sqrt(elements))):
        with torch.no_grad():
            parts = [rows.select(slice(start, start + size)) for start in range(0, len(rows), size)]
            worst = max(DDPO().loss(task, part)[1]["ratio_deviation"].max().item() for part in parts)
        assert worst <= most


@pytest.mark.parametrize("algorithm", [DDPO(), DPO(reference="sampler")], ids=lambda algorithm: algorithm.name)
def test_log_probabilities_that_are_computed_again_make_the_ratio_one(algorithm, monkeypatch):
    """With a network whose output depends on the number of rows by a thousandth, more than bfloat16's rounding does.

    Two updates, in micro-batches of three rows and what is left of them.
    """
    model = LatentUNet(SD, tiny.pipeline())
    model.tune(Tuning(rank=2))
    denoise = model.denoise
    monkeypatch.setattr(model, "denoise", lambda x, t, cond: denoise(x, t, cond) * (1 + 1e-3 * len(x)))
    grid, cond = model.process.grid(STEPS), model.encode(DRAW.prompts, 1.0)
    task = Task(model, ddim(grid, 1.0), "sum")
    rollout = sample(model, cond, DRAW, ddim(grid, 1.0), ddim(grid, 1.0).stochastic(), reduction="sum")
    values = torch.tensor([1.0, -1.0, 2.0, 0.0])
    rollout = replace(rollout, draw=DRAW, advantage=values, group=torch.tensor([0, 0, 1, 1]), reward=values)
    options = SimpleNamespace(optimizer=Optimizer(updates=2, rows=3))
    session = SimpleNamespace(config=options, task=task, inference=nullcontext)
    rows = algorithm.prepare(task, rollout)
    number = torch.arange(len(rows)) % 2
    again = recomputed(session, rows, number)

    def worst(rows):
        found = []
        for update in (0, 1):
            own = rows.select((number == update).nonzero().flatten())
            parts = [own.select(slice(start, start + 3)) for start in range(0, len(own), 3)]
            found += [algorithm.loss(task, part)[1]["ratio_deviation"].max().item() for part in parts]
        return max(found)

    assert worst(again) == 0
    assert worst(rows) > 0.01
    assert rows.rollout.latents.equal(again.rollout.latents)


def test_before_the_first_update_the_importance_sampled_methods_are_the_score_function(trained):
    """Their gradients are those of -A log p, whatever the clip."""
    task, rollout = trained
    step = all_rows(rollout).transitions()
    expected = gradient(task, (-step.advantage * task.log_prob(step)).mean())
    for algorithm in (DDPO(), DDPO(estimator="sf"), PG(), DPOK(kl=0.0, reward_weight=1.0), GRPO(kl=0.0)):
        loss, _ = algorithm.loss(task, algorithm.prepare(task, rollout))
        assert loss.shape == (4 * STEPS,)
        torch.testing.assert_close(gradient(task, loss.mean()), expected, rtol=1e-6, atol=1e-12)


def test_dpo_starts_at_ln_2_and_prefers_better_images():
    """Before training policy and reference are one: -log sigmoid(0), and its slope is -beta / 2 (h - h')'."""
    task, rollout = made(trained=False)
    for algorithm in (DPO(), DPO(reference="sampler")):
        rows = algorithm.prepare(task, rollout)
        assert rows.image.tolist() == [0] * STEPS + [3] * STEPS
        assert rows.others().image.tolist() == [1] * STEPS + [2] * STEPS
        assert rows.step_index.tolist() == [*range(STEPS)] * 2
        loss, _ = algorithm.loss(task, rows)
        torch.testing.assert_close(loss.detach(), torch.full_like(loss, math.log(2)), atol=1e-7, rtol=0)
        margin = task.log_prob(rows.transitions()) - task.log_prob(rows.others().transitions())
        expected = gradient(task, -0.1 / 2 * margin.mean())
        torch.testing.assert_close(gradient(task, loss.mean()), expected, rtol=1e-6, atol=1e-12)


def test_dpo_against_log_probabilities_of_two_passes_each(trained):
    """Away from the start, with the adapters' scale at 0 for the reference, with and without clip."""
    task, rollout = trained
    rows = DPO().prepare(task, rollout)
    better, worse = rows.transitions(), rows.others().transitions()
    with torch.no_grad():
        policy = [task.log_prob(side) for side in (better, worse)]
        with base(task.model):
            reference = [task.log_prob(side) for side in (better, worse)]
    ratios = [(p - r).exp() for p, r in zip(policy, reference, strict=True)]
    for clip in (None, 0.02):
        a, b = (ratio if clip is None else ratio.clamp(1 - clip, 1 + clip) for ratio in ratios)
        expected = (1 + (-5.0 * (a.log() - b.log())).exp()).log()
        algorithm = DPO(beta=5.0, clip=clip)
        loss, _ = algorithm.loss(task, rows)
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-9, atol=1e-12)
    assert any(((ratio - 1).abs() > 0.02).any() for ratio in ratios)  # the clip did something
    check_slope(task, lambda: DPO(beta=5.0, clip=None).loss(task, rows.select(slice(3, 7)))[0].sum())


def test_pairs_by_hand():
    """Group 3 has the rewards 1, 5, 5, 2: five pairs of six, as equals make none. Group 0 has one image."""
    draw = Draw(0, 1, ("a",) * 6, (0,) * 6, tuple(range(6)))
    rollout = Rollout(
        Cond({}, torch.zeros(6, dtype=torch.int64), 1.0), draw, reward=torch.tensor([1.0, 5.0, 9.0, 5.0, 2.0, 7.0]),
        group=torch.tensor([3, 3, 0, 3, 3, 3]), selected=torch.tensor([True] * 5 + [False]),
    )  # fmt: skip
    assert set(zip(*pairs(rollout, "all"), strict=True)) == {(1, 0), (3, 0), (4, 0), (1, 4), (3, 4)}
    assert list(zip(*pairs(rollout, "best-worst"), strict=True)) == [(1, 0)]


def test_divergences_against_the_noise_predictions(trained):
    """c^2 |eps - eps_ref|^2 / (2 sigma^2) per element, and DPOK's |eps - eps_ref|^2."""
    task, rollout = trained
    rows = all_rows(rollout)
    step = rows.transitions()
    t = task.sde.grid.times[step.step]
    with torch.no_grad():
        policy = noise_prediction(task.model, step.x, t, step.cond["text"], GUIDANCE)
        with base(task.model):
            reference = noise_prediction(task.model, step.x, t, step.cond["text"], GUIDANCE)
    square = (policy - reference).square().flatten(1).mean(dim=1)
    assert square.min() > 1e-6
    a_t, a_p = task.sde.grid.alpha[step.step] ** 2, task.sde.grid.alpha_next[step.step] ** 2
    sigma = ((1 - a_p) / (1 - a_t) * (1 - a_t / a_p)).sqrt()
    c = (1 - a_p - sigma**2).sqrt() - (a_p * (1 - a_t) / a_t).sqrt()
    exact = c**2 * square / (2 * sigma**2)
    plain, _ = DDPO().loss(task, rows)

    loss, metrics = GRPO(kl=3.0).loss(task, rows)
    torch.testing.assert_close(metrics["kl"], exact, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(loss, plain + 3.0 * exact, rtol=1e-5, atol=1e-9)
    loss, metrics = DPOK(kl=3.0, reward_weight=2.0).loss(task, rows)
    torch.testing.assert_close(metrics["kl"], exact, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(loss, 2.0 * plain + 3.0 * exact, rtol=1e-5, atol=1e-9)
    loss, _ = DPOK(kl=3.0, reward_weight=2.0, divergence="noise").loss(task, rows)
    torch.testing.assert_close(loss, 2.0 * plain + 3.0 * square, rtol=1e-5, atol=1e-9)
    joint, _ = GRPO(kl=3.0).loss(replace(task, reduction="sum"), rows)
    assert torch.isfinite(joint).all()
    kl = GRPO(kl=3.0).loss(replace(task, reduction="sum"), rows)[1]["kl"]
    torch.testing.assert_close(kl, 256 * exact, rtol=1e-5, atol=1e-9)


def test_slopes_of_the_divergences(trained):
    task, rollout = trained
    rows = all_rows(rollout).select(slice(5, 8))
    check_slope(task, lambda: GRPO(kl=50.0).loss(task, rows)[0].sum())
    check_slope(task, lambda: DPOK(kl=50.0, divergence="noise", clamp="direct").loss(task, rows)[0].sum())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_how_far_the_policy_has_moved_from_the_sampler(reduction):
    """The old means are those of the weights that sampled; moved weights change mean by d, and of the noise z of each
    step GRPO-Guard's log-ratio has (d z), the mean or sum over elements, and Flow-DPPO's divergence d^2 / (2 std^2)."""
    task, rollout = made(reduction=reduction)
    rows = all_rows(rollout)
    step = rows.transitions()
    with torch.no_grad():
        before = task.policy(step)
        assert task.drift(rows, before).max() < (1e-7 if reduction == "mean" else 1e-4)  # latents are stored in float32
        parameter = next(p for n, p in task.model.weights.trainable().items() if "lora_B" in n)
        parameter.add_(0.5)
        policy = task.policy(step)
        moved = policy.mean - before.mean
        add = lambda values: getattr(values.flatten(1), reduction)(dim=1)  # noqa: E731
        drift = task.drift(rows, policy)
        torch.testing.assert_close(drift, add(moved**2 / (2 * policy.std**2)), rtol=1e-3, atol=1e-9)
        noise = torch.stack(
            [DRAW.noise(s + 1, rollout.x0.shape[1:])[b] for b, s in zip(rows.image, step.step.tolist(), strict=True)]
        )
        expected = add(moved * noise).exp()
        assert (expected - 1).abs().max() > 1e-3
        loss, _ = GRPO(clip=1e9, kl=0.0, ratio="normalised").loss(task, rows)
        torch.testing.assert_close(loss, -step.advantage * expected, rtol=1e-4, atol=1e-7)
        limit = drift.sort().values[9:11].mean().item()
        loss, metrics = DPPO(max_divergence=limit).loss(task, rows)
        ratio = (policy.logp - step.logp).exp()
        gone = (drift > limit) & ((ratio - 1) * step.advantage > 0)
        assert 0 < gone.sum() < (drift > limit).sum()  # some of those that are too far are on their way back
        torch.testing.assert_close(loss, torch.where(gone, 0.0, -step.advantage * ratio))
        assert torch.equal(metrics["masked"], gone.float())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guided", [True, False])
def test_rwr_against_the_networks_own_denoising_loss(prediction, guided):
    """w (z - eps)^2, or w (v - v_hat)^2 with v = alpha z - sigma x_0, averaged over elements."""
    task, rollout = made(prediction_type=prediction)
    algorithm = RWR(noises=2, guided=guided)
    rows = algorithm.prepare(task, rollout)
    rows = replace(rows, epoch=torch.ones(len(rows), dtype=torch.int64))
    assert rows.image.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    noised = rows.noised(range(1000))
    assert len(set(noised.t.tolist())) == 8
    alpha = task.model.process.scheduler.alphas_cumprod.double()[noised.t].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    x = (alpha * noised.x0 + sigma * noised.noise).float()
    weight = GUIDANCE if guided else 1.0
    with torch.no_grad():
        output = noise_prediction(task.model, x, noised.t, noised.cond["text"], weight)
        loss, metrics = algorithm.loss(task, rows)
    target = noised.noise if prediction == "epsilon" else alpha * noised.noise - sigma * noised.x0
    expected = (target - output).square().flatten(1).mean(dim=1)
    torch.testing.assert_close(metrics["denoising_loss"], expected, rtol=1e-4, atol=1e-6)
    advantage = torch.tensor([0.5, 0.5, -1.0, -1.0, -0.4, -0.4, 1.5, 1.5])
    torch.testing.assert_close(loss, advantage * expected, rtol=1e-4, atol=1e-6)
    check_slope(task, lambda: algorithm.loss(task, rows)[0].sum())


def test_rwr_on_images_that_are_encoded_again(trained):
    """x_0 as the VAE sees it: the mean of its posterior, times the scale; the images first bounded to [0, 1]."""
    task, rollout = trained
    vae = task.model.pipeline.vae
    scale = vae.config.scaling_factor
    with torch.no_grad():
        images = vae.decode(rollout.x0 / scale).sample.clamp(-1, 1)
        expected = vae.encode(images).latent_dist.mean * scale
        found = RWR(latents="vae").prepare(task, rollout).rollout.x0
    assert (found - rollout.x0).abs().mean() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_times_of_a_window_are_its_stretch_of_the_chain(trained):
    """Steps at 801, 601, 401, 201, 1: the first stands for 602 to 999, the last for 0 and 1."""
    task, _ = trained
    assert task.sde.grid.times.tolist() == [801, 601, 401, 201, 1]
    assert task.times(torch.tensor([0])) == range(602, 1000)
    assert task.times(torch.tensor([1, 2])) == range(202, 602)
    assert task.times(torch.tensor([4])) == range(2)
    assert task.times(torch.arange(5)) == range(1000)


def test_nft_starts_with_the_gradient_of_the_weighted_denoising_loss(trained):
    """At v_theta = v_old the two squares are one: span beta (g - (1 - g)) / beta times its slope.

    2 g - 1 = A / span, so inside the span its weight is A itself. With A = (0.5, -1, -0.4, 1.5) and span 1 that is
    (0.5, -1, -0.4, 1): what is good is imitated, what is bad avoided. Whatever beta."""
    task, rollout = trained
    for beta in (1.0, 0.3):
        algorithm = NFT(beta=beta, span=1.0, noises=2, weighting="none")
        rows = algorithm.prepare(task, rollout)
        loss, metrics = algorithm.loss(task, rows)
        assert metrics["good"].tolist() == pytest.approx([0.75, 0.75, 0, 0, 0.3, 0.3, 1, 1])
        assert metrics["moved"].max() < 1e-10
        plain, _ = RWR(noises=2).loss(task, rows)  # A times the denoising loss, at the same noises
        error = plain / rollout.advantage[rows.image]
        weight = torch.tensor([0.5, 0.5, -1, -1, -0.4, -0.4, 1, 1])
        torch.testing.assert_close(
            gradient(task, loss.sum()), gradient(task, (weight * error).sum()), rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize("weighting", ["adaptive", "none"])
@pytest.mark.parametrize(("advantage", "sign"), [(5.0, -1), (-5.0, 1)])
def test_nft_raises_the_likelihood_of_good_images_and_lowers_that_of_bad_ones(weighting, advantage, sign):
    """Likelihood by its bound, the denoising loss, which a small step down the loss lowers or raises."""
    task, rollout = made()
    rollout = replace(rollout, advantage=torch.full((4,), advantage))
    algorithm = NFT(weighting=weighting)
    rows = algorithm.prepare(task, rollout)
    error = lambda: algorithm._residual(task, rows.noised(range(1000))).square().mean()  # noqa: E731
    with torch.no_grad():
        before = error()
    loss, _ = algorithm.loss(task, rows)
    loss.sum().backward()
    with torch.no_grad():
        for parameter in task.model.weights.trainable().values():
            parameter -= 1e-3 * parameter.grad
        assert sign * (error() - before) > 1e-6 * before


class OneElement:
    """A network for one element: it says `says`, and as the reference `said`; alpha is 0.6 and sigma 0.8."""

    device = torch.device("cpu")
    process = weights = property(lambda self: self)
    times = range(1)

    def __init__(self, says, said):
        self.says, self.said = says, said

    def scales(self, t):
        return torch.full(t.shape, 0.6), torch.full(t.shape, 0.8)

    def output_scale(self, t):
        return torch.full(t.shape, 0.6 / 0.8).double()

    def denoise(self, x, t, cond):
        return (x.double() - 0.8 * self.says) / 0.6

    def reference(self):
        return self

    def __enter__(self):
        self.says, self.said = self.said, self.says

    def __exit__(self, *_):
        self.__enter__()


def one_element(algorithm, says, said, before, advantage=1.5):
    """Loss, its slope in `says` and metrics of one row, x_t = 0.6 x_0 + 0.8 z with x_0 = 1, z = 0.5."""
    one, says = torch.ones(1, 1), torch.tensor(says, dtype=torch.float64, requires_grad=True)
    cond = Cond({"text": one.unsqueeze(1)}, torch.tensor([0]), 1.0)
    kept = Trajectory(one.new_zeros(1, 2, 1), torch.tensor([0]), one.new_zeros(1, 1))
    rollout = Rollout(
        cond, Draw(0, 1, ("a",), (0,), (0,)), one, kept, advantage=advantage * one[0], group=torch.tensor([0])
    )
    task = Task(OneElement(says, said), ddim(Grid(torch.zeros(1), *(one.double()[0],) * 4), 1.0))
    rows = replace(all_rows(rollout, 1), before=torch.tensor(before, dtype=torch.float64))
    noised = Noised(one, 0.5 * one, torch.tensor([0]), advantage * one[0], cond)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "noised", lambda self, times, like=None: noised)
        loss, metrics = algorithm.loss(task, rows)
    (slope,) = torch.autograd.grad(loss.sum(), says)
    return loss.item(), slope.item(), metrics


def test_nft_by_hand():
    """One element, x_t = 0.6 x_0 + 0.8 z with x_0 = 1, z = 0.5: x_t = 1. A = 1.5, span 5, beta 0.5, kl 0.1.

    The network says 0.7, said 0.4 in sampling, and the reference 0.2: x_0 = (1 - 0.8 e) / 0.6 = 0.7333, 1.1333, 1.4.
    Residuals of x_0: now -0.26667, before 0.13333, so that v+ is half way between, -0.06667, and v- is 0.33333; each
    square over its size is that size. g = (1 + 0.3) / 2 = 0.65. Policy: 5 / 0.5 (0.65 * 0.06667 + 0.35 * 0.33333) =
    1.6; divergence of the outputs: (0.7 - 0.2)^2 = 0.25, where x_0's would be 0.4444. 1.6 + 0.1 * 0.25 = 1.625.
    """
    loss, _, metrics = one_element(NFT(beta=0.5, kl=0.1), 0.7, 0.2, [[0.8 / 6]])
    plain, _, _ = one_element(NFT(beta=0.5), 0.7, 0.2, [[0.8 / 6]])
    assert plain == pytest.approx(1.6, abs=1e-6)
    assert metrics["kl"].item() == pytest.approx(0.25, abs=1e-6)
    assert loss == pytest.approx(1.625, abs=1e-6)


def test_awm_by_hand():
    """It says 0.7 of the noise 0.5, and said 0.4: squares 0.04 and 0.01, a log-ratio of -0.03, a ratio of 0.970446.

    -1.5 * 0.970446 = -1.455668; slope 1.5 * 0.970446 * 2 * 0.2 = 0.582267. The reference said 0.2, 0.25 away in square,
    with a slope of 1. `ghuber`: log p = -0.8 * e^0.25 / 0.25, -3.2 * 0.447214 and -3.2 * 0.316228, a log-ratio of
    -0.419155, whose ratio is 0.657602: -0.986404. Outside [0.98, 1.02] a negative advantage has no gradient left.
    """
    loss, slope, _ = one_element(AWM(), 0.7, 0.2, [-0.01])
    assert (loss, slope) == (pytest.approx(-1.455668, abs=1e-6), pytest.approx(0.582267, abs=1e-6))
    loss, slope, metrics = one_element(AWM(kl=0.1), 0.7, 0.2, [-0.01])
    assert (loss, slope) == (pytest.approx(-1.430668, abs=1e-6), pytest.approx(0.682267, abs=1e-6))
    assert metrics["kl"].item() == pytest.approx(0.25)
    loss, _, _ = one_element(AWM(weighting="ghuber"), 0.7, 0.2, [-3.2 * (0.01**0.25 - 1e-10**0.25)])
    assert loss == pytest.approx(-0.986404, abs=1e-5)
    loss, slope, metrics = one_element(AWM(clip=0.02), 0.7, 0.2, [-0.01], advantage=-1.5)
    assert (loss, slope, metrics["clip_fraction"].item()) == (pytest.approx(1.5 * 0.98), 0, 1)


def test_dgpo_by_hand():
    """Of a group's two images, A = 1 and -0.5, errors have changed by 0.02 and 0.01 against the reference:
    sigmoid(200 / 2 (0.02 - 0.005)) = sigmoid(1.5) = 0.817574; with another noise they have not: 0.5.

    An image of A = 1.5 times 0.8 with e = 0.04: 1.2 * 0.04 = 0.048, slope 1.2 * 2 * 0.2 = 0.48. e was 0.01: the ratio
    is 0.97, so that with A < 0 it has moved by 0.03 already.
    """
    draw = Draw(0, 1, ("a", "a"), (0, 0), (0, 1))
    cond = Cond({}, torch.zeros(2, dtype=torch.int64), 1.0)
    rollout = Rollout(cond, draw, advantage=torch.tensor([1.0, -0.5]), group=torch.tensor([7, 7]))
    found = DGPO(beta=200.0, noises=2)._sigmoid(all_rows(rollout, 2), torch.tensor([0.02, 0.0, 0.01, 0.0]))
    assert found.tolist() == pytest.approx([0.817574, 0.5, 0.817574, 0.5], abs=1e-6)
    loss, slope, metrics = one_element(DGPO(), 0.7, 0.2, [0.01], advantage=1.2)
    assert (loss, slope) == (pytest.approx(0.048), pytest.approx(0.48))
    assert metrics["clip_fraction"].item() == 0
    loss, slope, metrics = one_element(DGPO(kl=0.1), 0.7, 0.2, [0.01], advantage=1.2)
    assert (loss, slope) == (pytest.approx(0.048 + 0.025), pytest.approx(0.48 + 0.1))
    loss, slope, metrics = one_element(DGPO(clip=0.02, kl=0.1), 0.7, 0.2, [0.01], advantage=-1.2)
    assert (loss, slope) == (pytest.approx(-0.048 + 0.025), pytest.approx(0.1))
    assert metrics["clip_fraction"].item() == 1
    assert one_element(DGPO(clip=None), 0.7, 0.2, [0.01], advantage=-1.2)[1] == pytest.approx(-0.48)


def test_dgpo_starts_with_the_gradient_of_the_groups_preference_loss(trained):
    """Of -log sigmoid(-beta / G sum A (e - e_ref)), with the same time and noise for all images of a group; without the
    factor beta / G, as in the public code."""
    task, rollout = trained
    algorithm = DGPO(beta=30.0, noises=2, guided=False)
    with torch.no_grad():
        rows = algorithm.prepare(task, rollout)
    assert rows.image.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    first = replace(rows, image=torch.tensor([0, 0, 0, 0, 2, 2, 2, 2]), advantage=None)
    one = first.noised(range(1000))
    alpha = task.model.process.scheduler.alphas_cumprod.double()[one.t].sqrt().view(-1, 1, 1, 1)

    def errors():
        x = (alpha * rollout.x0[rows.image] + (1 - alpha**2).sqrt() * one.noise).float()
        eps = noise_prediction(task.model, x, one.t, rollout.cond["text"][rows.image], 1.0)
        return (one.noise - eps).square().flatten(1).mean(1)

    own = errors()
    with torch.no_grad(), base(task.model):
        reference = errors()
    terms = rollout.advantage[rows.image] * (own - reference)
    groups = torch.stack([terms[[0, 2]].sum(), terms[[1, 3]].sum(), terms[[4, 6]].sum(), terms[[5, 7]].sum()])
    expected = gradient(task, -logsigmoid(-15.0 * groups).sum()) / 15.0
    assert (rows.advantages() / rollout.advantage[rows.image] - 0.5).abs().max() > 0.01
    torch.testing.assert_close(gradient(task, algorithm.loss(task, rows)[0].sum()), expected, rtol=1e-3, atol=1e-7)


def test_online_diffusion_dpo_is_diffusion_dpo_on_the_best_and_the_worst(trained):
    """Rewards 0.3 and -0.6 of one prompt, 0.1 and 2.0 of another: image 0 against 1, and 3 against 2."""
    task, rollout = trained
    algorithm = OnlineDiffusionDPO(beta=20.0, noises=2)
    rows = algorithm.prepare(task, rollout)
    assert (rows.image.tolist(), rows.others().image.tolist()) == ([0, 0, 3, 3], [1, 1, 2, 2])
    assert rows.step_index.tolist() == [0, 1, 0, 1]
    loss, metrics = algorithm.loss(task, rows)
    expected, _ = DiffusionDPO(beta=20.0).loss(task, rows)
    torch.testing.assert_close(loss, expected)
    assert metrics.keys() == {"pair_accuracy", "denoising_loss"}


def test_awm_starts_with_the_gradient_of_the_weighted_denoising_loss(trained):
    """Ratios of 1 before the first update: A times the gradient of the mean square of the network's own residual, with
    signs, which RWR refuses; and a step along it changes the ratio."""
    task, rollout = trained
    algorithm = AWM(noises=2)
    with torch.no_grad():
        rows = algorithm.prepare(task, rollout)
    noised = rows.noised(range(1000))
    alpha = task.model.process.scheduler.alphas_cumprod.double()[noised.t].sqrt().view(-1, 1, 1, 1)
    x = (alpha * noised.x0 + (1 - alpha**2).sqrt() * noised.noise).float()
    eps = noise_prediction(task.model, x, noised.t, noised.cond["text"], GUIDANCE)
    error = (noised.noise - eps).square().flatten(1).mean(1)
    loss, metrics = algorithm.loss(task, rows)
    assert metrics["ratio_deviation"].max() < 1e-9
    torch.testing.assert_close(loss, -noised.weight.double(), rtol=1e-6, atol=1e-6)
    expected = gradient(task, (noised.weight * error).sum())
    torch.testing.assert_close(gradient(task, loss.sum()), expected, rtol=1e-3, atol=1e-6)


def test_nft_after_a_step_against_the_papers_formula(trained):
    """v+- = (1 -+ beta) v_old +- beta v_theta, with v_old of other weights, and the public code's divisors."""
    task, rollout = trained
    name = next(name for name in task.model.weights.trainable() if "lora_B" in name)
    parameter = task.model.weights.trainable()[name]
    for weighting, span in (("none", 1.0), ("adaptive", 1.0), ("adaptive", 2.0)):
        algorithm = NFT(beta=0.5, span=span, noises=1, kl=0.7, weighting=weighting)
        rows = algorithm.prepare(task, rollout)
        noised = rows.noised(range(1000))
        alpha = task.model.process.scheduler.alphas_cumprod.double()[noised.t].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - alpha**2).sqrt()
        x = (alpha * noised.x0 + sigma * noised.noise).float()

        def output(x=x, noised=noised, alpha=alpha, sigma=sigma, weighting=weighting):
            eps = noise_prediction(task.model, x, noised.t, noised.cond["text"], GUIDANCE)
            return eps if weighting == "none" else (x - sigma * eps) / alpha

        with torch.no_grad():
            old = output()
            parameter += 0.1
            now, (loss, _) = output(), algorithm.loss(task, rows)
            with base(task.model):
                reference = output()
            parameter -= 0.1
        target = noised.noise if weighting == "none" else noised.x0
        parts = []
        for sign in (1, -1):
            square = ((1 - sign * 0.5) * old + sign * 0.5 * now - target) ** 2
            size = ((1 - sign * 0.5) * old + sign * 0.5 * now - target).abs().flatten(1).mean(1)
            parts.append(square.flatten(1).mean(1) / (size if weighting == "adaptive" else 1))
        good = torch.tensor([0.75, 0.0, 0.3, 1.0] if span == 1 else [0.625, 0.25, 0.4, 0.875])
        expected = span * (good * parts[0] + (1 - good) * parts[1]) / 0.5
        # Of the network's outputs, also where the errors are those of x_0.
        unit = 1 if weighting == "none" else alpha / sigma
        expected = expected + 0.7 * (unit * (now - reference)).square().flatten(1).mean(1)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)


def test_diffusion_dpo_against_its_formula(trained):
    """same time and noise for both images of a pair, no guidance, the adapters off for the
    reference. Pairs: (0, 2) and (1, 3)."""
    task, rollout = trained
    algorithm = DiffusionDPO(beta=20.0, noises=2)
    rows = algorithm.prepare(task, rollout)
    assert rows.image.tolist() == [0, 0, 1, 1]
    assert rows.others().image.tolist() == [2, 2, 3, 3]
    one = rows.noised(range(1000))
    alpha = task.model.process.scheduler.alphas_cumprod.double()[one.t].sqrt().view(-1, 1, 1, 1)

    def errors():
        found = []
        for side in (rows.image, rows.others().image):
            x = (alpha * rollout.x0[side] + (1 - alpha**2).sqrt() * one.noise).float()
            eps = noise_prediction(task.model, x, one.t, rollout.cond["text"][side], 1.0)
            found.append((one.noise - eps).square().flatten(1).mean(1))
        return found

    with torch.no_grad():
        better, worse = errors()
        with base(task.model):
            ref, ref_worse = errors()
        expected = -logsigmoid(-10.0 * ((better - worse) - (ref - ref_worse)))
        loss, metrics = algorithm.loss(task, rows)
    assert (loss - math.log(2)).abs().min() > 1e-4
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(metrics["denoising_loss"], better, rtol=1e-4, atol=1e-6)
    check_slope(task, lambda: algorithm.loss(task, rows)[0].sum())
    # MaPO and Diffusion-KTO have the same rows, times and noises, and other losses of the same errors.
    mapo, kto = MaPO(beta=0.2, snr=5.0, noises=2), DiffusionKTO(beta=20.0, noises=2, good_weight=2.0, bad_weight=0.5)
    with torch.no_grad():
        loss, _ = mapo.loss(task, mapo.prepare(task, rollout))
        score = lambda e: 5 * e / ((5 * e).exp() - 1)  # noqa: E731
        margin = 1000 * (score(better) - score(worse))
        torch.testing.assert_close(loss, better - 0.2 * logsigmoid(margin), rtol=1e-3, atol=1e-5)
        rows = kto.prepare(task, rollout)
        before = torch.stack([better, worse, ref, ref_worse], dim=1)
        torch.testing.assert_close(rows.before, before, rtol=1e-4, atol=1e-6)
        for shift in (0.0, 0.7):  # as if the reference's errors had been larger by this, which the level takes away
            level = rows.before + torch.tensor([0, 0, shift, shift])
            z = (shift + (ref + ref_worse - better - worse).mean() / 2).clamp(min=0)
            one, two = 20 * (ref - better - z), -20 * (ref_worse - worse - z)
            expected = (2 * (1 - one.sigmoid()) + 0.5 * (1 - two.sigmoid())) / 2
            loss, metrics = kto.loss(task, replace(rows, level=level.mean(dim=0).expand_as(level)))
            torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-5)
            assert metrics["level"].tolist() == pytest.approx([z.item()] * 4, abs=1e-5)


@pytest.mark.parametrize("kind", ["unet", "cnn", "conv", "mlp"])
def test_value_networks_tell_rows_apart_and_learn(kind):
    """[N] values, 0 at first (the mlp is DPOK's, which starts anywhere). Latent, time and text all matter, but to the
    thesis' cnn, which sees the latent alone."""
    model = LatentUNet(SD, tiny.pipeline())
    torch.manual_seed(0)
    value = value_network(kind, model)
    text = model.encode(["a cat", "a dog", "fish"], 1.0)["text"]
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([1, 500, 999])
    first = value(x, t, text)
    assert first.shape == (3,)
    assert first.dtype == torch.float32
    if kind != "mlp":
        assert first.tolist() == [0.0, 0.0, 0.0]
    assert all(p.requires_grad and p.dtype == torch.float32 for p in value.parameters())
    optimizer = torch.optim.Adam(value.parameters(), lr=1e-2)
    target = torch.tensor([1.0, -2.0, 0.5])
    for _ in range(40):
        optimizer.zero_grad()
        (value(x, t, text) - target).square().sum().backward()
        assert all(p.grad is not None for p in value.parameters())  # what DDP and checkpoints rely on
        optimizer.step()
    with torch.no_grad():
        learned = value(x, t, text)
        torch.testing.assert_close(learned, target, atol=0.2, rtol=0)
        torch.testing.assert_close(value(x[1:2], t[1:2], text[1:2]), learned[1:2], atol=1e-5, rtol=1e-5)
        assert (value(x.flip(0), t, text) - learned).abs().max() > 1e-4
        for other in ((x, t.flip(0), text), (x, t, text.flip(0))):
            assert ((value(*other) - learned).abs().max() > 1e-4) == (kind != "cnn")


def test_the_digit_network_is_that_of_the_thesis_appendix_b():
    """For one channel at 32 pixels: 6 x 9 + 6 weights, 1536 x 24 + 24, 24 x 10 + 10, and 10 + 1 for the value."""
    torch.manual_seed(0)
    value = DigitValue((1, 32, 32))
    assert sum(p.numel() for p in value.parameters()) == 60 + 36888 + 250 + 11
    value.out.weight.data.copy_(torch.randn(1, 10))
    weights, x = value.state_dict(), torch.randn(3, 1, 32, 32)
    hidden = F.max_pool2d(F.relu(F.conv2d(x, weights["conv.weight"], weights["conv.bias"], padding=1)), 2, 2)
    hidden = F.relu(F.linear(hidden.view(-1, 6 * 16 * 16), weights["fc1.weight"], weights["fc1.bias"]))
    ten = F.linear(hidden, weights["fc2.weight"], weights["fc2.bias"])
    torch.testing.assert_close(value(x, torch.zeros(3), torch.zeros(3, 1, 1)), ten @ weights["out.weight"][0])


def test_pooled_text_is_the_encoders_state_at_the_first_end_of_the_prompt():
    """ "a cat" is start, a, c, a, t, end: place 5; after it come more ends, which pad the prompt."""
    model = LatentUNet(SD, tiny.pipeline())
    prompts = ["a cat", "fish", "a cat"]
    cond = model.encode(prompts, 1.0, pooled=True)
    states, pooled = cond["text"], cond["pooled"]
    torch.testing.assert_close(pooled, states[[0, 1, 2], [5, 5, 5]])
    assert not torch.allclose(pooled[0], states[0].mean(dim=0), atol=1e-2)
    model.clear_prompt_cache()
    assert torch.equal(model.encode(prompts[1:], 1.0, pooled=True)["pooled"], pooled[1:])


def test_the_value_unet_is_a_copy_of_its_own():
    model = LatentUNet(SD, tiny.pipeline())
    value = value_network("unet", model)
    ours, theirs = value.conv_in.weight, model.pipeline.unet.conv_in.weight
    assert torch.equal(ours, theirs)
    assert ours.data_ptr() != theirs.data_ptr()
    assert not theirs.requires_grad
    names = {name.partition(".")[0] for name, _ in value.named_parameters()}
    assert names == {"conv_in", "time_embedding", "down_blocks", "mid_block", "pool"}


class TimeValue(nn.Module):
    """V = t / 1000, from the time alone."""

    def forward(self, x, t, text):
        return t.to(x.dtype) / 1000


def test_ppo_prepare_by_hand(trained):
    """V = t / 1000 = (0.801, 0.601, 0.401, 0.201, 0.001). Every step costs 0.1 of its divergence; the last earns A.

    gamma 1, lambda 0.95: A_i = delta_i + 0.95 A_{i+1}, delta_i = R_i + V_{i+1} - V_i: -0.2 - cost, and in the end
    A - 0.001 - cost. Images 1 and 3 are selected: A = -1 and 1.5.
    """
    task, rollout = trained
    task = replace(task, value=TimeValue())
    rollout = replace(rollout, selected=torch.tensor([False, True, False, True]))
    divergence = GRPO(kl=1.0).loss(task, all_rows(rollout))[1]["kl"].reshape(2, STEPS)
    rows = PPO(kl=0.5, smoothing=0.95).prepare(task, rollout)  # the task's weight, 0.1, is what counts
    assert rows.image.tolist() == [1] * STEPS + [3] * STEPS
    torch.testing.assert_close(rows.kl, divergence.flatten())
    torch.testing.assert_close(rows.value, torch.tensor([0.801, 0.601, 0.401, 0.201, 0.001] * 2))
    for number, terminal in enumerate((-1.0, 1.5)):
        cost = (0.1 * divergence[number]).tolist()
        expected = [terminal - 0.001 - cost[4]]
        for i in (3, 2, 1, 0):
            expected.insert(0, -0.2 - cost[i] + 0.95 * expected[0])
        own = slice(number * STEPS, (number + 1) * STEPS)
        assert rows.advantage[own].tolist() == pytest.approx(expected, abs=1e-5)
        assert rows.target[own].tolist() == pytest.approx((rows.advantage + rows.value)[own].tolist(), abs=1e-6)


def test_ppo_estimators_at_sampled_steps(trained):
    """k1, k3 and the thesis' form from log-probabilities of two passes."""
    task, rollout = trained
    task = replace(task, value=TimeValue())
    step = all_rows(rollout).transitions()
    with torch.no_grad(), base(task.model):
        log_ratio = step.logp - task.log_prob(step)
    expected = {
        "k1": log_ratio, "k3": (-log_ratio).exp() - 1 + log_ratio, "thesis": log_ratio.exp() - 1 - log_ratio,
    }  # fmt: skip
    for kind, values in expected.items():
        torch.testing.assert_close(PPO(kl_estimator=kind).prepare(task, rollout).kl, values, rtol=1e-6, atol=1e-10)


def test_ppos_exact_divergence_has_its_slope_in_the_loss_in_the_advantages_unit(trained):
    """The loss is the surrogate, the value's, and weight * divergence, divided by what the advantages were, and once
    more by the 256 elements, as the surrogate's slope is: its log-probability is a mean."""
    task, rollout = trained
    task = replace(task, value=TimeValue())
    plain, exact = PPO(kl_estimator="k1"), PPO(kl_estimator="exact")
    rows = plain.prepare(task, rollout)
    divergence = GRPO(kl=1.0).loss(task, rows)[1]["kl"]
    for unit in (None, torch.full((20,), 2.5)):
        rows = replace(rows, unit=unit)
        more = exact.loss(task, rows)[0] - plain.loss(task, rows)[0]
        torch.testing.assert_close(more, 0.1 * divergence / 256 / (1 if unit is None else 2.5), rtol=1e-4, atol=1e-10)
    check_slope(task, lambda: exact.loss(task, rows.select(slice(4, 6)))[0].sum())


def test_dpok_with_a_value_network(trained):
    """A = r - V(x_t), and V is asked again for its loss: (V - r)^2."""
    task, rollout = trained
    algorithm = DPOK(value="mlp", kl=0.0, reward_weight=1.0)
    plain, _ = DDPO().loss(task, all_rows(rollout))
    task = replace(task, value=TimeValue())
    rows = algorithm.prepare(task, rollout)
    value = torch.tensor([0.801, 0.601, 0.401, 0.201, 0.001]).repeat(4)
    reward = rollout.advantage.repeat_interleave(STEPS)
    torch.testing.assert_close(rows.advantage, reward - value)
    loss, _ = algorithm.loss(task, rows)
    expected = plain * (reward - value) / reward
    torch.testing.assert_close(loss, expected + (value - reward) ** 2, rtol=1e-5, atol=1e-6)
    # With steps of its own the value network has no part in the policy's.
    apart = replace(algorithm, value_batch=20)
    loss, metrics = apart.loss(task, apart.prepare(task, rollout))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert "value_loss" not in metrics


@pytest.mark.parametrize("name", ["value_batch", "value_updates", "value_clip_norm"])
def test_dpoks_value_steps_must_be_some(name):
    with pytest.raises(ConfigError, match=f"algorithm.{name} is 0, but must be greater than 0"):
        DPOK(**{name: 0})


@pytest.mark.parametrize(
    "algorithm", [*SAMPLED, RWR(), NFT(), AWM(), DGPO(), OnlineDiffusionDPO()], ids=lambda algorithm: algorithm.name
)
def test_nothing_selected_makes_no_rows(trained, algorithm):
    task, rollout = trained
    rollout = replace(rollout, selected=torch.zeros(4, dtype=torch.bool))
    rows = algorithm.prepare(with_value(task, algorithm), rollout)
    assert len(rows) == 0
    assert len(rows.select(slice(0, 3))) == 0
