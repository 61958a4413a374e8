"""Cases of the sections that are the same for every algorithm."""

from __future__ import annotations

import json
import math
import sys
import types
from collections import Counter
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import smooth
import torch
from diffusers import DDIMScheduler
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

import given
import tiny
import tiny_flow
from every_setting import (
    DRAW,
    Lab,
    acts,
    called,
    close,
    flat,
    network_calls,
    one_round,
    rates_seen,
    updates_seen,
    weights,
)
from tastemaker.algorithms.diffusion_dpo import DiffusionDPO
from tastemaker.algorithms.grpo import GRPO
from tastemaker.algorithms.pg import PG
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.rwr import RWR
from tastemaker.algorithms.selection import BestWorst
from tastemaker.algorithms.windows import Backward, Random, Sliding
from tastemaker.config.schema import Pairs, PriorPreservation
from tastemaker.diffusion.sde import ddim
from tastemaker.errors import ConfigError, ModelError
from tastemaker.models import wrap_pipeline
from tastemaker.models.compiling import CACHE
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.stable_diffusion import SD
from tastemaker.models.tuning import Tuning
from tastemaker.runs.checkpoint import State
from tastemaker.training import prior_preservation, rounds, run, setup
from tastemaker.training.draws import draw_pairs
from tastemaker.training.evaluations import evaluate_run
from tastemaker.training.isolation import isolated
from tastemaker.training.pairs_round import encoded
from tastemaker.types import Draw

# The run as a whole.


@acts("model")
def model(lab: Lab) -> None:
    path = lab.new("model")
    tiny.folder(path, seed=1)
    session = lab.session(model=str(path))
    assert torch.equal(session.model.pipeline.unet.conv_in.weight, tiny.pipeline(1).unet.conv_in.weight)


@acts("prompts")
def prompts(lab: Lab) -> None:
    session = lab.session(prompts=str(lab.file("own.txt", "a fox\na owl\n")))
    with called(rounds, "sampled") as seen:
        one_round(session)
    assert set(seen[0][0][1].prompts) == {"a fox", "a owl"}


@acts("reward")
def reward(lab: Lab) -> None:
    found = evaluate_run(lab.session(reward="smooth:redness"))
    close(found.reward(found.seen), smooth.redness(found.seen.images, found.seen.draw.prompts))


@acts("seed")
def seed(lab: Lab) -> None:
    session = lab.session(seed=5, prior_preservation=PriorPreservation(weight=1.0, images=2, rows=2))
    other = LatentUNet(SD, tiny.pipeline())
    other.tune(session.config.tuning, 5)
    assert torch.equal(flat(weights(session)), flat({n: p.detach() for n, p in other.weights.trainable().items()}))
    assert evaluate_run(session).seen.draw.seed == 5
    with called(rounds, "sampled") as seen, called(prior_preservation, "in_turn") as turns:
        one_round(session)
    assert seen[0][0][1].seed == 5
    assert {arguments[1] for arguments, _, _ in turns} == {5}


@acts("precision")
def precision(lab: Lab) -> None:
    session = lab.session(precision="bf16")
    assert session.model.pipeline.unet.conv_in.weight.dtype == torch.bfloat16
    assert {p.dtype for p in session.model.weights.trainable().values()} == {torch.float32}


@acts("algorithm")
def algorithm(lab: Lab) -> None:
    """DDPO counts how many of its ratios are clipped, GRPO its divergence too, and PG neither."""
    for chosen, expected in ((PG(), set()), (GRPO(kl=1.0), {"clip_fraction", "kl"})):
        assert one_round(lab.session(algorithm=chosen)).keys() & {"clip_fraction", "kl"} == expected


# Advantages, by hand.


def advantages(
    lab: Lab, rewards: list[float], prompts: str, state: State | None = None, round: int = 1, **options: Any
) -> list[float]:
    """Advantages of images of one-letter prompts."""
    regression = {"algorithm": RWR()} if options.get("normalise") in ("softmax", "percentile") else {}
    config = lab.config(advantage=options, **regression)
    session: Any = types.SimpleNamespace(config=config, state=state or State(), reward=None)
    letters = sorted(set(prompts))
    draw = Draw(0, round, tuple(prompts), tuple(map(letters.index, prompts)), tuple(range(len(prompts))))
    return rounds.advantages(session, draw, torch.tensor(rewards, dtype=torch.float64), {}).tolist()


FOUR = [0.0, 2.0, 4.0, 8.0]
"""Rewards of the prompts a, a, b, b: mean 3.5, variance (12.25 + 2.25 + 0.25 + 20.25) / 4 = 8.75."""


@acts("advantage.normalise")
def normalise(lab: Lab) -> None:
    whole = [(r - 3.5) / math.sqrt(8.75) for r in FOUR]
    half = math.sqrt(0.5)
    base = State(base_mean=1.0, base_std=2.0)
    for name, expected, options in (
        ("none", FOUR, {}),
        ("round", whole, {}),
        ("per-prompt", whole, {}),  # two rewards of a prompt are fewer than min_count = 16
        ("base", [-0.5, 0.5, 1.5, 3.5], {}),
        ("group", [-1, 1, -1, 1], {}),
        ("decoupled", [-1, 1, -1, 1], {}),
        ("windowed", [-half, half, -half, half], {"min_count": 2}),  # sample deviations, sqrt(2) and sqrt(8)
        ("softmax", [0.5, 1.5, 1 / 41, 81 / 41], {"beta": math.log(3) / 2}),  # 1 : 3 and 9 : 81 = 1 : 9 ...
        ("percentile", [0, 1, 0, 1], {}),
    ):
        if name == "softmax":
            expected = [0.5, 1.5, 0.2, 1.8]  # exp(beta r) is 1, 3 and 9, 81
        close(advantages(lab, FOUR, "aabb", base, clip=None, normalise=name, **options), expected, 2e-4)
    decoupled_terms(lab)


def decoupled_terms(lab: Lab) -> None:
    """In a round: each part of a sum is normalised in its group, whatever its unit, and then weighted."""
    session = lab.session(reward="smooth:redness + 0.5*colourfulness", advantage={"normalise": "decoupled"})
    with called(rounds, "decoupled") as seen:
        one_round(session)
    (terms, group, spread), _, _ = seen[0]
    assert [weight for weight, _ in terms] == [1, 0.5]
    assert (sorted(Counter(group).values()), spread) == ([2, 2], "group")
    assert len({tuple(values.tolist()) for _, values in terms}) == 2


@acts("advantage.buffer")
def buffer(lab: Lab) -> None:
    """The last two of a prompt, 1 and 3: mean 2, deviation 1."""
    state = State(past_rewards={"a": [100.0, 100.0, 100.0]})
    close(advantages(lab, [1, 3], "aa", state, normalise="per-prompt", buffer=2, min_count=2), [-1, 1], 1e-5)


@acts("advantage.min_count")
def min_count(lab: Lab) -> None:
    """Of 0, 2 and 10 the mean is 4, the variance 56 / 3, or 28 with a sample's divisor."""
    found = advantages(lab, [0, 2, 10], "aab", normalise="per-prompt", min_count=2)
    close(found, [-1, 1, 6 / math.sqrt(56 / 3)], 1e-5)
    found = advantages(lab, [0, 2, 10], "aab", normalise="windowed", min_count=3)
    close(found, [(r - 4) / math.sqrt(28) for r in (0, 2, 10)], 1e-5)


@acts("advantage.history")
def history(lab: Lab) -> None:
    """In round 3 those of round 2 count, 1, and those of round 1 no more: mean of 1 and 3 is 2, deviation sqrt(2)."""
    state = State(past_rewards={"a": [100.0, 1.0]}, past_rounds={"a": [1, 2]})
    found = advantages(lab, [3], "a", state, 3, normalise="windowed", history=1, min_count=2)
    close(found, [math.sqrt(0.5)], 1e-5)


@acts("advantage.spread")
def spread(lab: Lab) -> None:
    """The groups' means are 1 and 6, the round's variance 8.75."""
    found = advantages(lab, FOUR, "aabb", normalise="group", spread="round")
    close(found, [x / math.sqrt(8.75) for x in (-1, 1, -2, 2)], 1e-4)


@acts("advantage.beta")
def beta(lab: Lab) -> None:
    """exp(beta r) is 1 and 3; their mean weight is 1."""
    close(advantages(lab, [0, 1], "aa", normalise="softmax", beta=math.log(3)), [0.5, 1.5])


@acts("advantage.percentile")
def percentile(lab: Lab) -> None:
    """The median of 1, 2, 3, 4 is 2.5, their 90th percentile 3.7."""
    assert advantages(lab, [1, 2, 3, 4], "aaaa", normalise="percentile", percentile=0.5) == [0, 0, 1, 1]


@acts("advantage.across")
def across(lab: Lab) -> None:
    """exp(r log 2) is 1, 2, 4, 8, over all four images; the round's median is 1.5, the prompts' are 0.5 and 2.5."""
    options = {"normalise": "softmax", "beta": math.log(2)}
    close(advantages(lab, [0, 1, 2, 3], "aabb", across="round", **options), [4 * w / 15 for w in (1, 2, 4, 8)])
    close(advantages(lab, [0, 1, 2, 3], "aabb", across="prompt", **options), [2 / 3, 4 / 3, 2 / 3, 4 / 3])
    options = {"normalise": "percentile", "percentile": 0.5}
    assert advantages(lab, [0, 1, 2, 3], "aabb", across="round", **options) == [0, 0, 1, 1]
    assert advantages(lab, [0, 1, 2, 3], "aabb", across="prompt", **options) == [0, 1, 0, 1]


@acts("advantage.clip")
def clip(lab: Lab) -> None:
    assert advantages(lab, [-30, 0.5, 20], "abc", normalise="none", clip=1.5) == [-1.5, 0.5, 1.5]
    assert advantages(lab, [-30, 0.5, 20], "abc", normalise="none", clip=None) == [-30, 0.5, 20]
    # Rewards 0 and 12 of a base model of mean 0 and deviation 2.
    assert advantages(lab, [0, 12], "ab", State(base_std=2.0), normalise="base", clip=3.0) == [0, 3]
    # A regression's weights are no advantages.
    close(advantages(lab, [0, 1], "aa", normalise="softmax", beta=math.log(3), clip=0.1), [0.5, 1.5])


@acts("advantage.step_weights")
def weights_of_steps(lab: Lab) -> None:
    """Of the three steps, in proportion to DDIM's sigma, and to 1 over how far sqrt(1 - a) falls; with mean 1."""
    scheduler = DDIMScheduler.from_config(lab.pipeline.scheduler.config)
    scheduler.set_timesteps(3)
    now = scheduler.alphas_cumprod[scheduler.timesteps].double()
    last = scheduler.final_alpha_cumprod.double()
    then = torch.cat([now[1:], last[None]])
    deviation = ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
    falls = (1 - now).sqrt() - (1 - then).sqrt()
    plain = lab.session(optimizer={"updates": 1})
    with updates_seen(plain) as seen:
        one_round(plain)
    unweighted = seen[0][0]
    for kind, expected in (("noise", deviation), ("inverse-dt", 1 / falls)):
        session = lab.session(advantage={"step_weights": kind}, optimizer={"updates": 1})
        with updates_seen(session) as seen:
            one_round(session)
        rows = seen[0][0]
        found = rows.advantages() / unweighted.advantages()
        close(found, (expected / expected.mean())[rows.step_index], 1e-4)
        assert expected.std() / expected.mean() > 0.05


# Windows and selections.


@acts("window")
def window(lab: Lab) -> None:
    session = lab.session(window=Backward(initial=1, rounds=9))
    assert one_round(session)["window"] == 1


@acts("window.backward.initial", "window.backward.rounds")
def backward(lab: Lab) -> None:
    """Round n from 0 has the last 2 + floor(n (10 - 2 + 1) / 3) of 10 steps, for 3 rounds."""
    steps = Backward(initial=2, rounds=3).steps
    assert [steps(range(10), round) for round in (1, 2, 3, 4)] == [
        [8, 9], [5, 6, 7, 8, 9], [2, 3, 4, 5, 6, 7, 8, 9], list(range(10)),
    ]  # fmt: skip


@acts("window.sliding.size", "window.sliding.every", "window.sliding.stride")
def sliding(lab: Lab) -> None:
    """Two steps at 0, 3, 6 and last 8 of 10, two rounds each, then again."""
    steps = Sliding(size=2, every=2, stride=3).steps
    found = [steps(range(10), round) for round in range(1, 10)]
    assert found == [[n, n + 1] for n in (0, 0, 3, 3, 6, 6, 8, 8, 0)]


@acts("window.random.size")
def random_window(lab: Lab) -> None:
    """One of the three steps with noise, at places that differ from round to round and follow the run's seed."""
    found = []
    for seed in (0, 1):
        session = lab.session(window=Random(size=1), sampling={"noise_outside": False}, seed=seed)
        with called(rounds, "sampled") as seen:
            assert [one_round(session)["window"] for _ in range(4)] == [1] * 4
        found.append([keep for (_, _, keep), _, _ in seen])
        assert len({tuple(keep) for keep in found[-1]}) > 1
    assert found[0] != found[1]


@acts("selection")
def selection(lab: Lab) -> None:
    """The best and the worst of four images."""
    session = lab.session(
        selection=BestWorst(0.0), sampling={"per_prompt": 4}, optimizer={"updates": 1}, advantage={"clip": None}
    )
    assert one_round(session)["selected"] == 0.5


@acts("selection.best-worst.threshold")
def threshold(lab: Lab) -> None:
    values = torch.tensor([0.6, 0.1, -0.3, 0.3, 0.0, -0.7])
    groups = [0, 0, 0, 1, 1, 1]
    assert BestWorst(0.4).chosen(values, groups).tolist() == [True, False, False, False, False, True]
    assert BestWorst(0.65).chosen(values, groups).tolist() == [False, False, False, False, False, True]
    assert BestWorst(0.2).chosen(values, groups).tolist() == [True, False, True, True, False, True]


# Sampling.


@acts("sampling.steps")
def steps(lab: Lab) -> None:
    session = lab.session(sampling={"steps": 5})
    with network_calls(session.model) as calls:
        evaluate_run(session)
    assert calls == [(4, False)] * 5


@acts("sampling.eta", "sampling.guidance")
def eta_and_guidance(lab: Lab) -> None:
    """The transitions are those of diffusers' scheduler with this eta, from two calls of the U-Net of our own."""
    session = lab.session(sampling={"eta": 0.5, "guidance": 3.0})
    model, rollout = session.model, rounds.sampled(session, DRAW, [0, 1]).rollout
    scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config)
    scheduler.set_timesteps(3)
    cond = model.encode(DRAW.prompts, 1.0)
    for step, t in enumerate(scheduler.timesteps[:2]):
        x = rollout.latents[:, step]
        with torch.no_grad():
            empty, full = (model.network(x, t, text).sample for text in (cond.unconditional()["text"], cond["text"]))
        noise = DRAW.noise(step + 1, x.shape[1:])
        after = scheduler.step(empty + 3.0 * (full - empty), t, x, eta=0.5, variance_noise=noise).prev_sample
        close(rollout.latents[:, step + 1], after, 1e-4)
    # And training asks the same policy.
    assert one_round(session)["ratio_deviation/first"] < 1e-6


@acts("sampling.samples")
def samples(lab: Lab) -> None:
    session = lab.session(sampling={"samples": 6})
    with called(rounds, "sampled") as seen:
        assert one_round(session)["reward_queries"] == 6
    assert len(seen[0][0][1]) == 6


@acts("sampling.per_prompt")
def per_prompt(lab: Lab) -> None:
    session = lab.session(sampling={"samples": 6, "per_prompt": 3})
    with called(rounds, "sampled") as seen:
        one_round(session)
    assert sorted(Counter(seen[0][0][1].prompts).values()) == [3, 3]


@acts("sampling.batch")
def batch(lab: Lab) -> None:
    session = lab.session(sampling={"samples": 6, "batch": 4})
    with network_calls(session.model) as calls:
        one_round(session)
    assert [size for size, grad in calls if not grad] == [4, 4, 4, 2, 2, 2]


@acts("sampling.branches")
def branches(lab: Lab) -> None:
    """Two roots for two steps, then two branches of each."""
    session = lab.session(
        sampling={"per_prompt": 4, "branches": 2}, window=Backward(initial=1, rounds=9), optimizer={"updates": 1}
    )
    with network_calls(session.model) as calls:
        one_round(session)
    assert [size for size, grad in calls if not grad] == [2, 2, 4]


@acts("sampling.sde_type")
def sde_type(lab: Lab) -> None:
    """A step's noise is sigma_next sin(eta pi / 2) for cps; a model without a flow has DDIM's when it is left out."""
    session, plain = (lab.session(sampling={"eta": 0.5, "sde_type": kind}) for kind in ("cps", "auto"))
    sde = session.task.sde
    rollout = rounds.sampled(session, DRAW, [0]).rollout
    x, t = rollout.latents[:, 0], sde.grid.times[0].expand(len(rollout))
    mean, _ = sde.step(x.double(), session.model.denoise(x, t, rollout.cond), 0)
    noise = DRAW.noise(1, x.shape[1:])
    close(rollout.latents[:, 1], mean + sde.grid.sigma_next[0] * math.sin(math.pi / 4) * noise)
    close(plain.task.sde.std, ddim(sde.grid, 0.5).std)


@acts("sampling.embedded_guidance")
def embedded_guidance(lab: Lab) -> None:
    """FLUX.1-dev's network is given it, and a network that takes none is refused."""
    weights = []
    for weight in (None, 7.0):
        config = lab.config(sampling={"embedded_guidance": weight, "height": 16, "width": 16})
        with mock.patch.object(setup, "load_model", return_value=wrap_pipeline(tiny_flow.flux())):
            model: Any = setup.start(config, lab.new(), State()).model
        x, cond = DRAW.noise(0, model.latent_shape), model.encode(DRAW.prompts, 1.0)
        with called(model.network, "forward") as seen:
            model.predict(x, torch.full((4,), 500.0), cond)
        weights.append(seen[0][1]["guidance"].tolist())
    assert weights == [[3.5] * 4, [7.0] * 4]
    with pytest.raises(ModelError, match="takes no guidance weight as an input"):
        lab.session(sampling={"embedded_guidance": 7.0})


@acts("sampling.log_prob")
def log_prob(lab: Lab) -> None:
    """A latent has 4 * 8 * 8 elements."""
    sessions = [lab.session(sampling={"log_prob": kind}) for kind in ("sum", "mean")]
    total, mean = (rounds.sampled(session, DRAW, [0, 1, 2]).rollout.logp for session in sessions)
    close(total, 256 * mean)
    assert one_round(sessions[0])["ratio_deviation/first"] < 1e-3  # training takes the sum too


@acts("sampling.recompute_log_prob")
def recompute_log_prob(lab: Lab) -> None:
    """Log-probabilities that are off by 1 are found anew, in the micro-batches of both updates: 5 of 6 rows, and 1."""
    session, collect = lab.session(sampling={"recompute_log_prob": True}, optimizer={"rows": 5}), rounds.sampled

    def off(*arguments: Any, **named: Any) -> Any:
        made = collect(*arguments, **named)
        trajectory = replace(made.rollout.trajectory, logp=made.rollout.logp + 1)
        return replace(made, rollout=replace(made.rollout, trajectory=trajectory))

    with (
        mock.patch.object(rounds, "sampled", off), network_calls(session.model) as calls,
        called(rounds, "update") as updated, updates_seen(session) as seen,
    ):  # fmt: skip
        assert one_round(session)["ratio_deviation/first"] < 1e-5
    assert [size for size, grad in calls if not grad] == [4] * 3 + [5, 1] * 2
    close(seen[0][0].rollout.logp, updated[0][0][1].rollout.logp - 1, 1e-4)


@acts("sampling.noise_outside")
def noise_outside(lab: Lab) -> None:
    """Up to the window it is diffusers' sampler without noise."""
    session = lab.session(sampling={"noise_outside": False}, window=Backward(initial=1, rounds=9))
    with called(rounds, "sampled") as seen:
        one_round(session)
    (_, draw, keep), _, made = seen[0]
    assert keep == [2]
    scheduler = DDIMScheduler.from_config(session.model.pipeline.scheduler.config)
    scheduler.set_timesteps(3)
    text = session.model.encode(draw.prompts, 1.0)["text"]
    x = draw.noise(0, session.model.latent_shape)
    base = LatentUNet(SD, tiny.pipeline())
    for t in scheduler.timesteps[:2]:
        with torch.no_grad():
            x = scheduler.step(base.network(x, t, text).sample, t, x, eta=0.0).prev_sample
    close(made.rollout.latents[:, 0], x, 1e-4)


@acts("sampling.height")
def height(lab: Lab) -> None:
    found = evaluate_run(lab.session(sampling={"height": 64}))
    assert found.seen.images.shape == (4, 3, 64, 32)


@acts("sampling.width")
def width(lab: Lab) -> None:
    found = evaluate_run(lab.session(sampling={"width": 64}))
    assert found.seen.images.shape == (4, 3, 32, 64)


# The optimizer.


def adamw(
    start: Tensor, gradients: list[Tensor], rates: list[float], betas: tuple[float, float], eps: float, decay: float
) -> Tensor:
    """Decoupled weight decay, Algorithm 2 of Loshchilov and Hutter 2019."""
    w, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        step = (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
        w = w - rate * step - rate * decay * w
    return w


@acts("optimizer.lr", "optimizer.warmup", "optimizer.betas", "optimizer.eps", "optimizer.weight_decay")
def adam(lab: Lab) -> None:
    """Two rounds of two updates; warm-up over 3 takes 1/4, 2/4, 3/4 and all of the rate."""
    options: dict[str, Any] = {"betas": (0.5, 0.7), "eps": 1e-3, "weight_decay": 0.3}
    session = lab.session(trained=True, optimizer={"lr": 0.01, "warmup": 3, **options})
    before = flat(weights(session))
    with updates_seen(session) as seen:
        one_round(session)
        one_round(session)
    rates = [0.01 * n / 4 for n in (1, 2, 3, 4)]
    expected = adamw(before, [flat(gradients) for _, gradients in seen], rates, (0.5, 0.7), 1e-3, 0.3)
    close(flat(weights(session)), expected, 2e-6)
    # A value network's parameters have a rate of their own, and all the rest alike.
    groups = lab.session(algorithm=PPO(value="mlp", value_lr=0.5), optimizer=options).optimizer.param_groups
    assert [(group["betas"], group["eps"], group["weight_decay"]) for group in groups] == [((0.5, 0.7), 1e-3, 0.3)] * 2


def rates(lab: Lab, **options: Any) -> list[float]:
    """The multiples of the learning rate in a run of two rounds of two updates."""
    session = lab.session(optimizer={"lr": 0.5, **options})
    with rates_seen(session) as seen:
        one_round(session)
        one_round(session)
    return [rate / 0.5 for rate in seen]


@acts("optimizer.lr_scheduler")
def lr_scheduler(lab: Lab) -> None:
    """By hand: after a warm-up of one update 3, 2 and 1 thirds; half of 1 + cos(n pi / 4)."""
    close(rates(lab, lr_scheduler="linear", warmup=1), [0.5, 1, 2 / 3, 1 / 3])
    half = math.sqrt(0.5) / 2
    close(rates(lab, lr_scheduler="cosine"), [1, 0.5 + half, 0.5, 0.5 - half])


@acts("optimizer.step_rules")
def step_rules(lab: Lab) -> None:
    close(rates(lab, lr_scheduler="piecewise_constant", step_rules="0.5:1,1:3,0.25"), [0.5, 1, 1, 0.25])


@acts("optimizer.clip_norm")
def clip_norm(lab: Lab) -> None:
    """A gradient of norm n becomes c / n of itself."""
    found = []
    for limit in (1e9, 1e-3):
        session = lab.session(trained=True, optimizer={"clip_norm": limit, "updates": 1})
        with updates_seen(session) as seen:
            norm = one_round(session)["grad_norm"]
        found.append(flat(seen[0][1]))
    assert found[0].norm().item() > 2e-3
    close(norm, found[0].norm(), 1e-5)
    close(found[1] / 1e-3, found[0] / found[0].norm(), 1e-3)


@acts("optimizer.updates")
def updates(lab: Lab) -> None:
    session = lab.session(optimizer={"updates": 1})
    with updates_seen(session) as seen:
        assert one_round(session)["updates"] == 1
    assert [len(rows) for rows, _ in seen] == [12]


@acts("optimizer.inner_epochs")
def inner_epochs(lab: Lab) -> None:
    """Three times the same rows."""
    session = lab.session(optimizer={"updates": 1, "inner_epochs": 3})
    with updates_seen(session) as seen:
        one_round(session)
    found = [(rows.image, torch.as_tensor(rows.epoch).expand(len(rows)).tolist()) for rows, _ in seen]
    assert [(len(image), epoch) for image, epoch in found] == [(12, [number] * 12) for number in range(3)]


@acts("optimizer.images_per_update")
def images_per_update(lab: Lab) -> None:
    """Two passes over 4 images are 8, of which two updates take 3 each: the second one and two, of either pass."""
    session = lab.session(optimizer={"images_per_update": 3, "inner_epochs": 2, "updates": 4})
    with updates_seen(session) as seen:
        assert one_round(session)["updates"] == 2
    found = [
        Counter(zip(rows.image.tolist(), torch.as_tensor(rows.epoch).expand(len(rows)).tolist(), strict=True))
        for rows, _ in seen
    ]
    assert [sorted(counts.values()) for counts in found] == [[3, 3, 3]] * 2  # images with all their three steps
    assert [sorted(epoch for _, epoch in counts) for counts in found] == [[0, 0, 0], [0, 1, 1]]
    assert sorted(image for counts in found for image, epoch in counts if epoch == 0) == [0, 1, 2, 3]


@acts("optimizer.minibatch")
def minibatch(lab: Lab) -> None:
    """Of 12 rows an update has 6: two whole images, or steps of more."""
    for kind in ("images", "states"):
        session = lab.session(optimizer={"minibatch": kind})
        with updates_seen(session) as seen:
            one_round(session)
        assert [len(rows) for rows, _ in seen] == [6, 6]
        images = {len(rows.image.unique()) for rows, _ in seen}
        assert images == {2} if kind == "images" else max(images) > 2


@acts("optimizer.ema")
def ema(lab: Lab) -> None:
    """After two updates 0.64 of the start, 0.16 of the first weights and 0.2 of the second."""
    session = lab.session(optimizer={"ema": 0.8, "updates": 1, "lr": 0.1})
    found = [flat(weights(session))]
    for _ in range(2):
        one_round(session)
        found.append(flat(weights(session)))
    assert session.average is not None
    average = 0.64 * found[0] + 0.16 * found[1] + 0.2 * found[2]
    close(flat(session.average.copies), average)
    # Evaluations sample with it.
    used: list[Tensor] = []
    session.model.pipeline.unet.register_forward_pre_hook(lambda *_: used.append(flat(weights(session))))
    evaluate_run(session)
    close(used[0], average)
    close(flat(weights(session)), found[2])


class Eight(torch.optim.AdamW):
    """Stands for bitsandbytes' optimizer, which is not installed everywhere."""


@acts("optimizer.eight_bit")
def eight_bit(lab: Lab) -> None:
    package, optim = types.ModuleType("bitsandbytes"), types.ModuleType("bitsandbytes.optim")
    vars(optim)["AdamW8bit"] = Eight
    with mock.patch.dict(sys.modules, {"bitsandbytes": package, "bitsandbytes.optim": optim}):
        options = {"lr": 0.5, "betas": (0.5, 0.7), "eps": 1e-3, "weight_decay": 0.3}
        optimizer: Any = lab.session(optimizer={"eight_bit": True, **options}).optimizer
    assert type(optimizer.optimizer) is Eight
    assert {name: optimizer.param_groups[0][name] for name in options} == options


@acts("optimizer.rows")
def rows(lab: Lab) -> None:
    session = lab.session(optimizer={"rows": 5, "updates": 1})
    with network_calls(session.model) as calls:
        one_round(session)
    assert [size for size, grad in calls if grad] == [5, 5, 2]


@acts("optimizer.first_share")
def first_share(lab: Lab) -> None:
    session = lab.session(sampling={"steps": 4}, optimizer={"first_share": 0.5})
    with updates_seen(session) as seen:
        assert one_round(session)["window"] == 2
    assert seen[0][0].rollout.steps.tolist() == [0, 1]


@acts("optimizer.timestep_fraction")
def timestep_fraction(lab: Lab) -> None:
    """One step of three of each image."""
    session = lab.session(optimizer={"timestep_fraction": 0.34})
    with updates_seen(session) as seen:
        assert one_round(session)["rows"] == 4
    assert sorted(image for rows, _ in seen for image in rows.image.tolist()) == [0, 1, 2, 3]


@acts("optimizer.single_pass")
def single_pass(lab: Lab) -> None:
    """Of four images in three steps each pass of the network has a graph, and there is no other."""
    session = lab.session(optimizer={"single_pass": True, "updates": 1})
    with network_calls(session.model) as calls:
        one_round(session)
    assert calls == [(4, True)] * 3


# Which weights learn.


def adapters(network: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}


@acts("tuning.mode")
def mode(lab: Lab) -> None:
    session = lab.session(tuning=Tuning(mode="full"))
    assert session.model.weights.trainable().keys() == dict(tiny.pipeline().unet.named_parameters()).keys()


@acts("tuning.rank")
def rank(lab: Lab) -> None:
    layers = adapters(lab.session(tuning={"rank": 3}).model.network).values()
    assert {layer.lora_A["default"].weight.shape[0] for layer in layers} == {3}
    assert {layer.lora_B["default"].weight.shape[1] for layer in layers} == {3}


@acts("tuning.alpha")
def alpha(lab: Lab) -> None:
    """An adapter adds alpha / rank B A x: three times it, or once where alpha is left out."""
    for value, scale in ((6.0, 3.0), (None, 1.0)):
        session = lab.session(trained=True, tuning={"rank": 2, "alpha": value})
        layers = adapters(session.model.network)
        assert len(layers) > 1
        for layer in layers.values():
            x = torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(0))
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            close(layer(x), layer.base_layer(x) + scale * x @ a.T @ b.T, 1e-5)


@acts("tuning.targets")
def targets(lab: Lab) -> None:
    layers = adapters(lab.session(tuning={"targets": ("attn2.to_k", "to_out.0")}).model.network)
    assert {".".join(name.split(".")[-2:]) for name in layers} == {"attn2.to_k", "to_out.0"}
    assert {name.split(".")[-3] for name in layers if name.endswith("to_out.0")} == {"attn1", "attn2"}


@acts("sampling.negative_prompt")
def negative_prompt(lab: Lab) -> None:
    """Half of the guided passes of a round's sampling, training and evaluation have its states, and none the empty."""
    session, seen = lab.session(sampling={"guidance": 3.0, "negative_prompt": "blurry"}), []
    negative, empty = (session.model.encode([prompt], 1.0)["text"][0] for prompt in ("blurry", ""))

    def count(module: nn.Module, arguments: Any, options: Any) -> None:
        states = options["encoder_hidden_states"]
        seen.append((len(states), *(sum(bool((row == one).all()) for row in states) for one in (negative, empty))))

    hook = session.model.network.register_forward_pre_hook(count, with_kwargs=True)
    one_round(session)
    trained = len(seen)
    evaluate_run(session)
    hook.remove()
    assert 0 < trained < len(seen)
    assert all((2 * of_negative, of_empty) == (rows, 0) for rows, of_negative, of_empty in seen)


@acts("tuning.start_from")
def start_from(lab: Lab) -> None:
    """The adapter to be trained has the factors of the file."""
    saved = lab.session(trained=True)
    saved.model.weights.save(lab.folder / "started")
    session = lab.session(tuning={"start_from": str(lab.folder / "started")})
    for name, value in session.model.weights.trainable().items():
        assert torch.equal(value, saved.model.weights.trainable()[name])


def under(lab: Lab, **tuning: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's weight in the model, in a session with an adapter under the trained one, and what that adapter adds."""
    saved, name = lab.session(trained=True), "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    folder = lab.new("frozen")
    saved.model.weights.save(folder)
    layer = saved.model.network.get_submodule(name)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    session = lab.session(tuning={"frozen_adapters": (str(folder),), **tuning})
    found = session.model.network.get_submodule(name).base_layer.weight
    return layer.base_layer.weight.detach(), found.detach(), (b @ a * layer.scaling["default"]).detach()


@acts("tuning.frozen_adapters")
def frozen_adapters(lab: Lab) -> None:
    base, found, added = under(lab)
    close(found, base + added, 1e-6)
    assert added.abs().max() > 1e-3


@acts("tuning.frozen_weights")
def frozen_weights(lab: Lab) -> None:
    base, found, added = under(lab, frozen_weights=(-3.0,))
    close(found, base - 3 * added, 1e-5)


@acts("tuning.base_weights")
def base_weights(lab: Lab) -> None:
    """All linear layers are bitsandbytes' (tests/unit/test_small_gpu.py has their numbers), or its lack is named."""
    missing = mock.patch.dict(sys.modules, {"bitsandbytes": None, "bitsandbytes.nn": None})
    with missing, pytest.raises(ConfigError, match=r"tuning\.base_weights is nf4, which needs bitsandbytes"):
        lab.session(tuning={"base_weights": "nf4"})


@acts("memory.offload")
def offload(lab: Lab) -> None:
    """Text encoder and the VAE's parts come to the device for their own passes alone."""
    session, moves = lab.session(memory={"offload": True}), []
    text = session.model.components["text_encoder"]
    with mock.patch.object(type(text), "to", lambda module, device: moves.append(str(device)) or module):
        session.model.encode(["a new prompt"], 1.0)
    assert moves == [str(session.model.device), "cpu"]


@acts("memory.vae_slicing")
def vae_slicing(lab: Lab) -> None:
    """The decoder has one image at a time."""
    session = lab.session(memory={"vae_slicing": True})
    assert decoded(session, 3) == [1, 1, 1]


def decoded(session: Any, count: int, side: int = 8) -> list[int]:
    """How many images the decoder has at each of its passes."""
    seen = []
    decoder = session.model.components["vae"].decoder
    hook = decoder.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    session.model.decode(torch.zeros(count, 4, side, side))
    hook.remove()
    return seen


@acts("memory.vae_tiling")
def vae_tiling(lab: Lab) -> None:
    """Latents of 16 x 16 in tiles of 8 x 8, of which a quarter overlaps: starts 0, 6 and 12 on either side."""
    session = lab.session(memory={"vae_tiling": True})
    assert decoded(session, 2, 16) == [2] * 9


@acts("memory.prompt_states")
def prompt_states(lab: Lab) -> None:
    session = lab.session(memory={"prompt_states": True})
    folder = lab.new("states")
    folder.mkdir()
    run._keep_prompt_states(session, folder)
    session.model.encode(["a new prompt"], 1.0)
    assert len(list(folder.rglob("*.safetensors"))) == 2  # the empty one too


@acts("tuning.gradient_checkpointing")
def gradient_checkpointing(lab: Lab) -> None:
    """A block behind the adapters runs once for each of the 3 steps of sampling, once in training, and once more in
    the backward pass."""
    session, runs = lab.session(tuning={"gradient_checkpointing": True}, optimizer={"updates": 1}), []
    session.model.pipeline.unet.up_blocks[-1].resnets[0].register_forward_pre_hook(lambda *_: runs.append(1))
    one_round(session)
    assert len(runs) == 3 + 2


# What a run learns from and holds on to besides its own images.


@acts("pairs.sources")
def pairs_sources(lab: Lab) -> None:
    session = lab.session(algorithm=DiffusionDPO(), pairs=Pairs((str(given.pairs(lab.new("pairs"), 3)),)))
    assert session.pairs is not None
    assert session.pairs.prompts == ("cat", "dog", "bear")
    # Image 0 is preferred to 1, and 3 to 2.
    close(session.pairs.images(1, 32, 32), torch.stack([pixels(given.image(n)) for n in (3, 2)]))
    two = str(given.pairs(lab.new("more"), 2))
    session = lab.session(algorithm=DiffusionDPO(), pairs=Pairs((*session.config.pairs.sources, two)))
    assert session.pairs is not None
    assert session.pairs.prompts == ("cat", "dog", "bear", "cat", "dog")


def pixels(image: Any) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)


def dataset(lab: Lab) -> str:
    """A data set with a split `other`, whose captions are others than those of `train`."""
    import io

    import datasets

    datasets.disable_progress_bars()
    files = []
    for n in range(4):
        file = io.BytesIO()
        given.image(n).save(file, "PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    path, made = lab.new("set"), {}
    for split, caption in (("train", "cat"), ("other", "owl")):
        columns = {"caption": [caption] * 2, "jpg_0": files[:2], "jpg_1": files[2:], "image": files[:2]}
        kinds = {name: datasets.Image() for name in ("jpg_0", "jpg_1", "image")}
        verdicts = {"label_0": [1.0, 0.0], "label_1": [0.0, 1.0]}
        made[split] = datasets.Dataset.from_dict(columns | verdicts)
        for name, kind in kinds.items():
            made[split] = made[split].cast_column(name, kind)
    datasets.DatasetDict(made).save_to_disk(path)
    return str(path)


@acts("pairs.split")
def pairs_split(lab: Lab) -> None:
    session = lab.session(algorithm=DiffusionDPO(), pairs=Pairs((dataset(lab),), "other"))
    assert session.pairs is not None
    assert session.pairs.prompts == ("owl", "owl")


@acts("pairs.labels")
def pairs_labels(lab: Lab) -> None:
    """3 of 4 votes for the first of two images, 1 of 4, and as many for both: the probabilities 0.75, 0.25, 0.5 in the
    loss, -p log sigmoid(m) - (1 - p) log sigmoid(-m); a pair of equal votes counts."""
    folder = given.pairs(lab.new("votes"), 3)
    rows = [
        {"prompt": f"{n}", "image1": f"{n}-0.png", "image2": f"{n}-1.png", "votes_image1": one, "votes_image2": two}
        for n, (one, two) in enumerate([(3, 1), (1, 3), (2, 2)])
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    session = lab.session(
        trained=True, algorithm=DiffusionDPO(beta=50.0), pairs=Pairs((str(folder),), labels="probabilities"),
        sampling={"samples": 3, "per_prompt": 1, "batch": 3}, optimizer={"updates": 1},
    )  # fmt: skip
    assert session.pairs is not None
    draw = draw_pairs(session.pairs.prompts, 0, 1, 3)
    rollout = encoded(session, session.pairs, draw)
    label = torch.tensor([{"0": 0.75, "1": 0.25, "2": 0.5}[prompt] for prompt in draw.prompts])
    assert rollout.label is not None
    close(rollout.label, torch.cat([label, 1 - label]))
    algorithm = session.config.algorithm
    with torch.no_grad():
        soft = algorithm.loss(session.task, algorithm.prepare(session.task, rollout))[0].double()
        hard = replace(rollout, label=None)
        forward = algorithm.loss(session.task, algorithm.prepare(session.task, hard))[0].double()
    margin = -torch.expm1(forward).log()  # of -log sigmoid(m)
    close(soft, label * forward + (1 - label) * (forward + margin), 1e-5)


@acts("prior_preservation.split")
def anchor_split(lab: Lab) -> None:
    session = lab.session(prior_preservation=PriorPreservation(weight=1.0, source=dataset(lab), split="other", rows=2))
    assert session.prior_images is not None
    close(session.prior_images.cond["text"], session.model.encode(["owl", "owl"], 1.0)["text"])


@acts("reference.every")
def reference_every(lab: Lab) -> None:
    session = lab.session(algorithm=GRPO(kl=1.0), reference={"every": 2}, optimizer={"lr": 0.1})
    start, found = flat(weights(session)), []
    for _ in range(3):
        one_round(session)
        found.append(flat(weights(session)))
        with session.model.weights.reference():
            found[-1] = (found[-1], flat(weights(session)))
    assert torch.equal(found[0][1], start)
    assert torch.equal(found[1][1], found[1][0])
    assert torch.equal(found[2][1], found[1][0])
    assert not torch.equal(found[2][0], found[1][0])


@acts("prior_preservation.weight")
def anchor_weight(lab: Lab) -> None:
    """The gradient is linear in it: that of the loss of prior preservation, which at 2 and at 6 is measured alike."""
    found = []
    for weight in (0.0, 2.0, 6.0):
        session = lab.session(
            trained=True,
            prior_preservation=PriorPreservation(weight=weight, images=2, rows=2),
            optimizer={"updates": 1},
        )
        with updates_seen(session) as seen:
            record = one_round(session)
        found.append((flat(seen[0][1]), record.get("prior_loss")))
    (nothing, none), (two, loss), (six, same) = found
    assert none is None
    assert loss == same > 0
    assert (two - nothing).norm() > 1e-3 * nothing.norm()
    close((six - nothing) / (two - nothing).norm(), 3 * (two - nothing) / (two - nothing).norm(), 1e-3)


@acts("prior_preservation.source")
def anchor_source(lab: Lab) -> None:
    folder, table = lab.new("captioned"), []
    folder.mkdir()
    for n, prompt in enumerate(("fox", "owl")):
        given.image(n).save(folder / f"{n}.png")
        table.append({"file_name": f"{n}.png", "text": prompt})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    session = lab.session(prior_preservation=PriorPreservation(weight=1.0, source=str(folder), rows=2))
    made, model = session.prior_images, session.model
    assert made is not None
    order = [0, 1] if torch.equal(made.cond["text"][0], model.encode(["fox"], 1.0)["text"][0]) else [1, 0]
    close(made.cond["text"], model.encode([("fox", "owl")[n] for n in order], 1.0)["text"])
    close(made.x0, model.encode_images(torch.stack([pixels(given.image(n)) for n in order])), 1e-5)


@acts("prior_preservation.images")
def anchor_images(lab: Lab) -> None:
    session = lab.session(prior_preservation=PriorPreservation(weight=1.0, images=3, rows=2))
    assert session.prior_images is not None
    assert len(session.prior_images.x0) == 3


@acts("prior_preservation.rows")
def anchor_rows(lab: Lab) -> None:
    session = lab.session(prior_preservation=PriorPreservation(weight=1.0, images=2, rows=3))
    with called(prior_preservation, "_noised") as seen:
        one_round(session)
    assert [len(noised.x0) for _, _, noised in seen] == [3, 3]


@acts("prior_preservation.guided")
def anchor_guided(lab: Lab) -> None:
    """With guidance the network is given each row twice, with its prompt and without: 2 * 3 of
    the prior images' and 2 * 6 of the update's."""
    session = lab.session(
        prior_preservation=PriorPreservation(weight=1.0, images=2, rows=3, guided=True), sampling={"guidance": 3.0}
    )
    with network_calls(session.model) as calls:
        one_round(session)
    assert [size for size, grad in calls if grad] == [6, 12, 6, 12]


@acts("prior_preservation.drop_captions")
def anchor_drop_captions(lab: Lab) -> None:
    session = lab.session(prior_preservation=PriorPreservation(weight=1.0, images=2, rows=8, drop_captions=0.5))
    with called(prior_preservation, "_noised") as seen:
        one_round(session)
    empty = session.model.encode([""], 1.0)["text"][0]
    dropped = [bool(torch.equal(text, empty)) for _, _, noised in seen for text in noised.cond["text"]]
    assert len(dropped) == 16
    assert 3 < sum(dropped) < 13


# Evaluations, apart from when they are made (loops.py).


@acts("evaluation.prompts", "evaluation.per_prompt")
def evaluation_draw(lab: Lab) -> None:
    found = evaluate_run(lab.session(evaluation={"prompts": 3, "per_prompt": 5}))
    assert list(Counter(found.seen.draw.prompts).values()) == [5, 5, 5]
    assert len(found.seen.images) == 15


@acts("evaluation.unseen")
def evaluation_unseen(lab: Lab) -> None:
    session = lab.session(evaluation={"unseen": str(lab.file("unseen.txt", "a hat\na cup\n"))})
    found = evaluate_run(session)
    assert found.unseen is not None
    assert found.unseen.draw.prompts == ("a hat", "a hat", "a cup", "a cup")
    mean = smooth.redness(found.unseen.images, ()).mean()
    close(found.record(session.state)["eval/unseen/reward/mean"], mean)


@acts("evaluation.hold_out")
def evaluation_hold_out(lab: Lab) -> None:
    prompts, unseen = (str(lab.file("list.txt", text)) for text in ("a fox\na hat\na owl\n", "a hat\na cup\n"))
    session = lab.session(prompts=prompts, evaluation={"unseen": unseen, "hold_out": True})
    assert session.prompts.prompts == ("a fox", "a owl")
    assert session.unseen is not None
    assert session.unseen.prompts == ("a hat", "a cup")


@acts("evaluation.rewards")
def evaluation_rewards(lab: Lab) -> None:
    session = lab.session(evaluation={"rewards": ("smooth:warmth",)})
    found = evaluate_run(session)
    close(found.record(session.state)["eval/rewards/smooth:warmth"], smooth.warmth(found.seen.images, ()).mean())


@acts("evaluation.kl_images")
def evaluation_kl_images(lab: Lab) -> None:
    """Three images are sampled in 3 steps, and each step, as it is sampled, is asked of both models.

    The divergence is the squared distance of the steps' means over 2 std^2, summed; here with diffusers' scheduler.
    """
    session = lab.session(trained=True, evaluation={"kl_images": 3})
    with network_calls(session.model) as calls:
        found = evaluate_run(session)
    assert [size for size, _ in calls] == [4] * 3 + [3] * (2 * 3)
    assert found.kl is not None
    draw, model = found.seen.draw.select([0, 1, 2]), session.model
    scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config)
    scheduler.set_timesteps(3)
    text = model.encode(draw.prompts, 1.0)["text"]
    x, total = draw.noise(0, model.latent_shape), torch.zeros(3, dtype=torch.float64)
    for step, t in enumerate(scheduler.timesteps):
        previous = t - 1000 // 3
        std = scheduler._get_variance(t, previous) ** 0.5
        none = torch.zeros_like(x)
        with torch.no_grad():
            own = scheduler.step(model.network(x, t, text).sample, t, x, eta=1.0, variance_noise=none).prev_sample
            with model.weights.reference():
                base = scheduler.step(model.network(x, t, text).sample, t, x, eta=1.0, variance_noise=none).prev_sample
        total += ((own - base).double().square().flatten(1).sum(dim=1)) / (2 * std**2)
        x = own + std * draw.noise(step + 1, model.latent_shape)
    close(found.kl, total, 1e-3)
    close(found.record(session.state)["eval/kl"], total.mean(), 1e-3)
    assert evaluate_run(lab.session()).kl is None


# Speed.


@acts("speed.compile")
def speed_compile(lab: Lab) -> None:
    cache = mock.patch.dict("os.environ", {CACHE: str(lab.new())})
    with cache, mock.patch.object(nn.Module, "compile", autospec=True) as compile, isolated():
        session = lab.session(speed={"compile": True})
    compile.assert_called_once_with(session.model.pipeline.unet, dynamic=False, backend="inductor")


@acts("speed.channels_last")
def speed_channels_last(lab: Lab) -> None:
    plain, last = lab.session(), lab.session(speed={"channels_last": True})
    first, second = plain.model.pipeline.unet.conv_in.weight, last.model.pipeline.unet.conv_in.weight
    assert not first.is_contiguous(memory_format=torch.channels_last)
    assert second.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(first, second)


@acts("speed.attention")
def speed_attention(lab: Lab) -> None:
    with isolated():
        lab.session(speed={"attention": "math"})
        assert not torch.backends.cuda.flash_sdp_enabled()
        lab.session(speed={"attention": "flash"})
        assert torch.backends.cuda.flash_sdp_enabled()
        assert not torch.backends.cuda.mem_efficient_sdp_enabled()
        with pytest.raises(ConfigError, match=r"speed\.attention is efficient, which does not work for"):
            lab.session(speed={"attention": "efficient"})
    assert torch.backends.cuda.mem_efficient_sdp_enabled()


@acts("speed.tf32")
def speed_tf32(lab: Lab) -> None:
    with mock.patch.object(torch, "set_float32_matmul_precision") as precision:
        lab.session(speed={"tf32": True})
    precision.assert_called_once_with("high")
