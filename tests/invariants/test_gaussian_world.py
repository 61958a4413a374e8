"""Whole rounds of every method where the truth is known in closed form: images of two numbers (gaussian_world.py).

All of the package takes part but the network: drawing, sampling, branches, windows, advantages, selection, `prepare`,
`loss`, updates.
"""

from functools import partial

import numpy as np
import pytest
import torch

from gaussian_world import STEPS, World, session, taste
from tastemaker import noise
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.dpo import DPO
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.grpo import GRPO
from tastemaker.algorithms.nft import NFT
from tastemaker.algorithms.pg import PG
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.rwr import RWR
from tastemaker.algorithms.selection import All, NonZero
from tastemaker.algorithms.windows import Backward, Sliding, Whole
from tastemaker.config.schema import Advantage, Config, Optimizer, Sampling
from tastemaker.diffusion.sampler import sample
from tastemaker.diffusion.sde import ddim
from tastemaker.errors import ConfigError
from tastemaker.models.value import ConditionalMLP
from tastemaker.training.rounds import one_round
from tastemaker.types import Draw


@pytest.fixture(autouse=True)
def quick_noise(monkeypatch):
    """Noise by the batch: Philox by the image takes longer than all of the rest here."""

    def normal(draw, step, shape, device="cpu"):
        random = torch.Generator().manual_seed(1000 * draw.round + step)
        return torch.randn(len(draw), *shape, generator=random)

    tables = {}

    def diffused(shape, times, seed, round, prompt, sample, place, epoch):
        if (round, place, epoch) not in tables:
            random = torch.Generator().manual_seed(10**6 * (epoch + 1) + 1000 * round + place)
            tables[round, place, epoch] = (
                torch.rand(4, 500, generator=random).tolist(),
                torch.randn(4, 500, *shape, generator=random),
            )
        share, values = tables[round, place, epoch]
        return times[int(share[prompt][sample] * len(times))], values[prompt, sample]

    monkeypatch.setattr(Draw, "noise", normal)
    monkeypatch.setattr(noise, "diffused", diffused)


def white_noise(monkeypatch, images):
    """Noise of `images` images whose moments up to the second are those of the normal distribution exactly.

    A round's mean of advantage times noise is then its expectation: everything here is linear in the noise.
    """
    columns = 2 * (STEPS + 1)

    def normal(draw, step, shape, device="cpu"):
        random = torch.Generator().manual_seed(draw.round)
        plain = torch.randn(images, columns, dtype=torch.float64, generator=random)
        plain = plain - plain.mean(dim=0)
        white = torch.linalg.qr(plain).Q * images**0.5
        assert len(draw) == images
        return white[:, 2 * step : 2 * step + 2].float()

    monkeypatch.setattr(Draw, "noise", normal)


@pytest.mark.parametrize("kind", ["vp", "flow"])
def test_the_closed_form_is_what_the_sampler_does(kind, monkeypatch):
    """Means of 5000 images with shifts at every step, and the deviation of their rewards."""
    world, count = World(kind), 5000
    white_noise(monkeypatch, count)
    with torch.no_grad():
        world.shift.theta.copy_(torch.randn(STEPS, 2, generator=torch.Generator().manual_seed(0)))
    draw = Draw(0, 1, ("right",) * count, (0,) * count, tuple(range(count)))
    grid = world.process.grid(STEPS)
    rollout = sample(world, world.encode(draw.prompts, 1.0), draw, ddim(grid, 1.0), ddim(grid, 1.0).stochastic())
    expected = world.closed.mean("right", world.shift.theta.detach().numpy())
    np.testing.assert_allclose(rollout.x0.double().mean(dim=0).numpy(), expected, atol=1e-5)
    reward = taste(world.decode(rollout.x0), draw.prompts)
    assert reward.mean().item() == pytest.approx(world.reward("right"), abs=1e-5)
    assert reward.std(correction=0).item() == pytest.approx(world.closed.reward_std(), rel=1e-5)
    assert world.closed.std.tolist() == pytest.approx(ddim(grid, 1.0).std.tolist())
    assert len(ddim(grid, 1.0).stochastic()) == (5 if kind == "vp" else 4)  # the flow's last step has no noise


GROUP, WEIGHTS = Advantage(normalise="group"), Advantage(normalise="softmax", beta=1.0)
SPARSE = Advantage(normalise="percentile", percentile=0.75)
METHODS = {
    "ddpo-is": (DDPO(clip=0.02), Advantage(min_count=4), All()),
    "ddpo-sf": (DDPO(estimator="sf"), GROUP, All()),
    "pg": (PG(), Advantage(normalise="windowed", min_count=4), All()),
    "dpok": (DPOK(clip=0.02, clamp="direct", divergence="noise"), GROUP, All()),
    "dpo": (DPO(beta=1.0, pairs="best-worst"), GROUP, All()),
    "grpo": (GRPO(clip=0.02, kl=0.01), GROUP, NonZero()),
    "nft": (NFT(noises=4, span=2.0), GROUP, All()),
    "rwr-softmax": (RWR(noises=4), WEIGHTS, All()),
    "rwr-percentile": (RWR(noises=4), SPARSE, NonZero()),
    "ppo": (PPO(value="mlp", kl=0.01, value_lr=1e-2), Advantage(normalise="round"), All()),
}
WINDOWS = {"whole": Whole(), "backward": Backward(2, 4), "sliding": Sliding(2, 2, 1)}


@pytest.mark.parametrize("kind", ["vp", "flow"])
@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_raises_the_reward(method, window, branches, kind):
    """By more than a fifth of the rewards' deviation in four rounds; the sliding window without noise outside it."""
    algorithm, advantage, selection = METHODS[method]
    config = Config(
        model="world", rounds=4, algorithm=algorithm, advantage=advantage, selection=selection, window=WINDOWS[window],
        sampling=Sampling(steps=STEPS, guidance=1.0, samples=240, per_prompt=12, batch=240, branches=branches,
            noise_outside=window != "sliding"),
        optimizer=Optimizer(lr=0.05, updates=2 if method != "ddpo-sf" else 1, rows=1000, clip_norm=1e9),
    )  # fmt: skip
    world = World(kind)
    torch.manual_seed(0)
    value = ConditionalMLP(world.latent_shape, 2) if method == "ppo" else None
    run = session(config, world, ["left", "right"], partial(torch.optim.Adam, lr=0.05), value)
    before = world.reward()
    for _ in range(config.rounds):
        one_round(run)
    assert world.reward() > before + 0.2 * world.closed.reward_std()


PENALTY = 2.0


@pytest.mark.parametrize("kind", ["vp", "flow"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "algorithm",
    [
        GRPO(kl=PENALTY),
        DPOK(reward_weight=3.0, kl=3.0 * PENALTY),
        DPOK(reward_weight=3.0, kl=3.0 * PENALTY, clamp="direct", value="mlp"),
        *(
            PPO(value="mlp", kl=PENALTY, smoothing=1.0, kl_estimator=estimator, normalise=normalise)
            for estimator in ("exact", "k1")
            for normalise in ("minibatch", "none")
        ),
    ],
    ids=["grpo", "dpok", "dpok-value", "ppo-exact", "ppo-exact-plain", "ppo-k1", "ppo-k1-plain"],
)
def test_a_divergence_in_the_objective_leads_to_the_known_optimum(kind, algorithm, reduction, monkeypatch):
    """J = TASTE . mean x_0 - beta sum |theta_i|^2 / 2, with theta_i the shift of step i's mean in units of its std, so
    that |theta_i|^2 / 2 is its divergence. x_0 is linear in the shifts: J's slope is reach_i - beta theta_i, and
    theta_i = reach_i / beta.

    For PPO beta is the weight of the divergence in the reward: of its mean over 2 elements, half of it. In the losses
    of the others both terms are means over the elements or neither, so that it does not matter.
    """
    images = 64
    ppo = isinstance(algorithm, PPO)
    penalty = PENALTY / 2 if ppo and reduction == "mean" else PENALTY
    per_row = 2 if reduction == "mean" else 1
    white_noise(monkeypatch, images)
    world, kept = World(kind), 5 if kind == "vp" else 4
    config = Config(
        model="world", rounds=1, algorithm=algorithm, advantage=Advantage(normalise="none", clip=None),
        sampling=Sampling(steps=STEPS, guidance=1.0, samples=images, per_prompt=images, batch=images,
            log_prob=reduction),
        # A step of 0.3 of the way: the slope's slope is the penalty, over the rows and elements of a mean.
        optimizer=Optimizer(lr=0.3 * per_row * kept / PENALTY, updates=1, rows=1000, clip_norm=1e9),
    )  # fmt: skip
    torch.manual_seed(0)
    value = ConditionalMLP(world.latent_shape, 2) if getattr(algorithm, "value", "none") == "mlp" else None
    run = session(config, world, ["left"], partial(torch.optim.SGD, lr=0.0), value)
    for _ in range(30):
        one_round(run)
    best = world.closed.reach() / penalty
    found = world.shift.theta.detach().numpy()
    assert np.linalg.norm(found - best) < 0.05 * np.linalg.norm(best)


def test_log_probabilities_are_computed_again_where_that_is_asked_for():
    """With a network whose output depends on the size of the batch, and more rows in training than in sampling."""
    first = {}
    for again in (False, True):
        config = Config(
            model="world", rounds=1, algorithm=DDPO(clip=0.2), advantage=Advantage(normalise="round"),
            sampling=Sampling(steps=STEPS, guidance=1.0, samples=24, batch=24, log_prob="sum",
                recompute_log_prob=again),
            optimizer=Optimizer(lr=0.05, updates=2, rows=7, clip_norm=1e9),
        )  # fmt: skip
        world = World("vp")
        denoise = world.denoise
        world.denoise = lambda x, t, cond, denoise=denoise: denoise(x, t, cond) * (1 + 1e-3 * len(x))
        record = one_round(session(config, world, ["left"], partial(torch.optim.Adam, lr=0.05)))
        first[again] = record["ratio_deviation/first"]
    assert first[True] == 0
    assert first[False] > 1e-3
    with pytest.raises(ConfigError, match="recompute_log_prob is true, but the algorithm rwr has no"):
        Config(algorithm=RWR(), advantage=WEIGHTS, sampling=Sampling(recompute_log_prob=True))
