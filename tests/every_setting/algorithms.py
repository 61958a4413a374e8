"""Cases of the algorithms that learn from sampled or given images."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import given
from compared import quick, trained
from every_setting import (
    Lab,
    Policy,
    acts,
    called,
    close,
    flat,
    network_calls,
    one_round,
    updates_seen,
    weights,
)
from tastemaker.algorithms.awm import AWM
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
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.rwr import RWR
from tastemaker.config.schema import Pairs
from tastemaker.models.value import ConditionalMLP, ConvValue, DigitValue, UNetValue
from tastemaker.rewards.preferences.architecture import Architecture
from tastemaker.rewards.preferences.reward import load_reward_model
from tastemaker.runs.checkpoint import State
from tastemaker.training import rounds
from tastemaker.training.session import Session
from tastemaker.types import Rows, all_rows

ADVANTAGE = [0.5, -1.0, -0.4, 1.5]
LOG_RATIO = [0.3, 0.3, -0.3, -0.3]
STEPS = 3


def each_step(values: Sequence[float]) -> Tensor:
    """[12] values of the images at each of their steps."""
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(STEPS)


def clipped(clip: float, direct: bool = False) -> Tensor:
    """max(-A r, -A clip(r)), or -A clip(r) alone, of the images whose log-ratios are LOG_RATIO."""
    found = []
    for a, d in zip(ADVANTAGE, LOG_RATIO, strict=True):
        near = min(max(math.exp(d), 1 - clip), 1 + clip)
        found.append(-a * near if direct else max(-a * math.exp(d), -a * near))
    return each_step(found)


def divergence(policy: Policy, rows: Rows) -> Tensor:
    found = policy.divergence(rows).flatten(1).mean(dim=1)
    assert found.min() > 1e-6
    return found


class Constant(nn.Module):
    """A value network that says the same of everything."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return torch.full((len(x),), self.value)


# DDPO, GRPO, DPOK.


@acts("algorithm.ddpo.estimator")
def ddpo_estimator(lab: Lab) -> None:
    policy = lab.policy
    loss, _ = policy.loss(DDPO(estimator="sf"))
    close(loss, -each_step(ADVANTAGE) * policy.rollout.logp.flatten())


@acts("algorithm.ddpo.clip", "algorithm.grpo.clip", "algorithm.dpok.clip")
def clip(lab: Lab) -> None:
    policy = lab.policy
    moved = policy.moved(LOG_RATIO)
    for algorithm in (DDPO(clip=0.2), GRPO(clip=0.2, kl=0.0), DPOK(clip=0.2, kl=0.0, reward_weight=1.0)):
        loss, metrics = policy.loss(algorithm, moved)
        close(loss, clipped(0.2))
        assert metrics["clip_fraction"].mean() == 1
        assert policy.loss(replace(algorithm, clip=0.4), moved)[1]["clip_fraction"].mean() == 0


@acts("algorithm.grpo.ratio")
def grpo_ratio(lab: Lab) -> None:
    """Before the first update nothing has moved: log-ratios are times the deviation of their step's noise."""
    policy = lab.policy
    moved = policy.moved(LOG_RATIO)
    std = policy.task.policy(all_rows(moved).transitions()).std.flatten()
    loss, metrics = policy.loss(GRPO(clip=1e9, kl=0.0, ratio="normalised"), moved)
    expected = (each_step(LOG_RATIO) * std).exp()
    close(loss, -each_step(ADVANTAGE) * expected)
    close(metrics["ratio_deviation"], (expected - 1).abs())


@acts("algorithm.dppo.max_divergence", "algorithm.dppo.kl")
def dppo(lab: Lab) -> None:
    """As if the sampler's noise had been half as large: its means were x_next - std z / 2, a divergence of z^2 / 8.

    Rows above the limit are left out where the ratio is above 1 and A > 0, or below 1 and A < 0.
    """
    policy = lab.policy
    moved = policy.moved(LOG_RATIO)
    rows = all_rows(moved)
    step = rows.transitions()
    size = (rows.step_noise() ** 2).flatten(1).mean(dim=1).double() / 8
    with mock.patch.object(Rows, "step_noise", lambda own, noise=Rows.step_noise: noise(own) / 2):
        limit = size.sort().values[5:7].mean().item()
        found, metrics = policy.loss(DPPO(max_divergence=limit), moved)
        close(metrics["divergence"], size, 1e-4)
        ratio = each_step(LOG_RATIO).exp()
        gone = (size > limit) & ((ratio - 1) * step.advantage > 0)
        assert 0 < gone.sum() < 12
        close(found, torch.where(gone, 0.0, -step.advantage * ratio))
        loss, metrics = policy.loss(DPPO(max_divergence=limit, kl=3.0), moved)
    exact = divergence(policy, rows)
    close(metrics["kl"], exact)
    close(loss, found + 3 * exact)


@acts("algorithm.grpo.kl", "algorithm.dpok.kl", "algorithm.dpok.reward_weight")
def kl(lab: Lab) -> None:
    policy = lab.policy
    moved = policy.moved(LOG_RATIO)
    exact = divergence(policy, all_rows(moved))
    loss, metrics = policy.loss(GRPO(clip=0.2, kl=3.0), moved)
    close(metrics["kl"], exact)
    close(loss, clipped(0.2) + 3 * exact)
    loss, _ = policy.loss(DPOK(clip=0.2, kl=3.0, reward_weight=2.0), moved)
    close(loss, 2 * clipped(0.2) + 3 * exact)


@acts("algorithm.dpok.clamp")
def dpok_clamp(lab: Lab) -> None:
    policy = lab.policy
    loss, _ = policy.loss(DPOK(clip=0.2, kl=0.0, reward_weight=1.0, clamp="direct"), policy.moved(LOG_RATIO))
    close(loss, clipped(0.2, direct=True))


@acts("algorithm.dpok.divergence")
def dpok_divergence(lab: Lab) -> None:
    """|eps - eps_ref|^2 of the noise predictions, eps = (x - alpha x_0) / sigma."""
    policy = lab.policy
    step = all_rows(policy.rollout).transitions()
    with torch.no_grad():
        gap = policy.task.policy(step).x0 - policy.task.reference(step).x0
    scale = (policy.task.sde.grid.alpha / policy.task.sde.grid.sigma)[step.step]
    noise = (gap * scale[:, None, None, None]).square().flatten(1).mean(dim=1)
    loss, _ = policy.loss(DPOK(kl=3.0, reward_weight=1.0, divergence="noise"))
    close(loss, -each_step(ADVANTAGE) + 3 * noise, 1e-5)


@acts("algorithm.dpok.value")
def dpok_value(lab: Lab) -> None:
    """A value of 0.2 is taken from the advantages; its square error stands beside the loss."""
    session = lab.session(algorithm=DPOK(value="mlp"), advantage={"normalise": "base"})
    assert isinstance(session.task.value, ConditionalMLP)
    assert one_round(session)["value_loss"] > 0
    policy = lab.policy
    loss, metrics = policy.loss(DPOK(value="mlp", kl=0.0, reward_weight=1.0), value=Constant(0.2))
    error = (0.2 - each_step(ADVANTAGE)).square()
    close(metrics["value_loss"], error)
    close(loss, -(each_step(ADVANTAGE) - 0.2) + error)


@acts("algorithm.dpok.value_lr", "algorithm.ppo.value_lr", "algorithm.ppo.value_warmup")
def value_rates(lab: Lab) -> None:
    """In the second update of the run a warm-up over 3 takes 2/4 of the rate."""
    for algorithm, expected in (
        (DPOK(value="mlp", value_lr=0.5), 0.5),
        (PPO(value="mlp", value_lr=0.5, value_warmup=3), 0.25),
    ):
        session = lab.session(algorithm=algorithm, advantage={"normalise": "base"})
        one_round(session)
        assert [group["lr"] for group in session.optimizer.param_groups] == [1e-3, expected]


@acts("algorithm.ppo.value_from")
def ppo_value_from(lab: Lab) -> None:
    """The value network's pool is the reward model's, whose last layer is in units of the standardised reward."""
    folder = lab.folder / "reward-model"
    trained(folder, Architecture("unet", model=str(lab.checkpoint)), quick(epochs=1))
    session = lab.session(algorithm=PPO(value_from=str(folder)), advantage={"normalise": "base"})
    own, model = session.task.value, load_reward_model(folder)
    assert isinstance(own, UNetValue)
    for name, weight in model.heads[0].named_parameters():
        factor = model.scale.members[0][1] * model.scale.std if name == "out.weight" else 1.0
        if name != "out.bias":
            close(own.pool.get_parameter(name) * factor, weight, 1e-5)


def with_value(lab: Lab, algorithm: DPOK, **changes: Any) -> Session:
    return lab.session(algorithm=algorithm, advantage={"normalise": "base"}, **changes)


@contextmanager
def value_calls(session: Session) -> Iterator[list[tuple[Tensor, Tensor, bool]]]:
    """Latents and text states that the value network is given, and whether a graph is kept."""
    seen: list[tuple[Tensor, Tensor, bool]] = []
    value: Any = session.task.value
    hook = value.register_forward_pre_hook(lambda _, given: seen.append((given[0], given[2], torch.is_grad_enabled())))
    try:
        yield seen
    finally:
        hook.remove()


@acts("algorithm.dpok.value_text")
def dpok_value_text(lab: Lab) -> None:
    """In all calls one state a prompt, which is transformers' pooled output, or those of all tokens."""
    for kind in ("pooled", "mean"):
        session = with_value(lab, DPOK(value="mlp", value_text=kind))  # type: ignore[arg-type]
        with value_calls(session) as calls, called(rounds, "sampled") as collected:
            one_round(session)
        prompts, pipeline = list(collected[0][0][1].prompts), session.model.pipeline
        length = pipeline.tokenizer.model_max_length
        tokens = pipeline.tokenizer(prompts, padding="max_length", max_length=length, return_tensors="pt")
        with torch.no_grad():
            found = pipeline.text_encoder(tokens.input_ids)
        expected = found.pooler_output[:, None] if kind == "pooled" else found.last_hidden_state
        close(calls[0][1], expected.repeat_interleave(STEPS, dim=0), 1e-5)  # rows of all images, before the updates
        assert {text.shape[1] for _, text, _ in calls} == {1 if kind == "pooled" else length}


@acts("algorithm.dpok.value_batch", "algorithm.dpok.value_updates")
def dpok_value_batch(lab: Lab) -> None:
    """Three steps of four of the round's twelve states, each once, before the policy learns, and none with it."""
    session = with_value(lab, DPOK(value="mlp", value_batch=4, value_updates=3))
    with value_calls(session) as calls:
        one_round(session)
    assert [(len(x), graph) for x, _, graph in calls] == [(4, True)] * 3 + [(12, False)]
    states = torch.cat([x for x, _, graph in calls if graph]).flatten(1)
    assert sorted(states.tolist()) == sorted(calls[-1][0].flatten(1).tolist())


def value_norms(session: Session) -> list[float]:
    """Norms of the value network's gradient in the optimizer steps of a round that have one."""
    norms: list[float] = []

    def note(own: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad.flatten() for p in own.param_groups[1]["params"] if p.grad is not None]
        if gradients:
            norms.append(torch.cat(gradients).norm().item())

    optimizer: Any = session.optimizer
    optimizer.optimizer.register_step_pre_hook(note)
    one_round(session)
    return norms


@acts("algorithm.dpok.value_clip_norm")
def dpok_value_clip_norm(lab: Lab) -> None:
    """In steps of its own, and in the policy's two; none has no limit, whatever the policy's is."""
    for own, count in ((4, 1), (None, 2)):
        algorithm = DPOK(value="mlp", value_batch=own)
        free = value_norms(with_value(lab, algorithm, optimizer={"clip_norm": 1e-3}))
        assert len(free) == count
        assert min(free) > 2e-3
        close(value_norms(with_value(lab, replace(algorithm, value_clip_norm=1e-3))), [1e-3] * count, 1e-5)


# DPO.


def margins(policy: Policy, algorithm: DPO) -> Tensor:
    """The loss [2] of the pairs 0 > 1 and 3 > 2 where the sampler's log-ratios are 0.3, -0.2, 0.1, 0.5."""
    loss, _ = policy.loss(algorithm, policy.moved([0.3, -0.2, 0.1, 0.5]))
    assert loss.shape == (2 * STEPS,)
    return loss[::STEPS]


@acts("algorithm.dpo.beta", "algorithm.dpo.clip", "algorithm.dpo.reference")
def dpo(lab: Lab) -> None:
    """-log sigmoid(2 (h - h')): without a clip 0.3 + 0.2 and 0.5 - 0.1; at 0.25 log-ratios stop at log 1.25."""
    policy = lab.policy
    loss = margins(policy, DPO(beta=2.0, clip=None, reference="sampler"))
    close(loss, [math.log(1 + math.exp(-2 * m)) for m in (0.5, 0.4)])
    loss = margins(policy, DPO(beta=2.0, clip=0.25, reference="sampler"))
    close(loss, [math.log(1 + math.exp(-2 * m)) for m in (math.log(1.25) + 0.2, math.log(1.25) - 0.1)])
    # Of the base model.
    rows = DPO().prepare(policy.task, policy.rollout)
    with torch.no_grad():
        h, other = (
            policy.task.log_prob(step) - policy.task.reference(step).logp
            for step in (rows.transitions(), rows.others().transitions())
        )
    loss, _ = policy.loss(DPO(beta=2.0, clip=None, reference="base"))
    close(loss, (1 + (-2 * (h - other)).exp()).log())


@acts("algorithm.dpo.pairs")
def dpo_pairs(lab: Lab) -> None:
    """Rewards 0.3, -0.6, 0.1, 2 in one group: six pairs, or the best against the worst."""
    policy = lab.policy
    rollout = replace(policy.rollout, group=torch.zeros(4, dtype=torch.int64))
    rows = DPO(pairs="best-worst").prepare(policy.task, rollout)
    assert rows.other is not None
    assert (rows.image.tolist(), rows.other.tolist()) == ([3] * STEPS, [1] * STEPS)
    assert len(DPO(pairs="all").prepare(policy.task, rollout)) == 6 * STEPS


# PPO.


def prepared(policy: Policy, algorithm: PPO, value: float, kl: float = 0.0) -> Rows:
    task = replace(policy.task, value=Constant(value), kl=kl)
    with torch.no_grad():
        return algorithm.prepare(task, policy.rollout)


def shared_out(rewards: Sequence[float], value: float, discount: float, smoothing: float) -> list[float]:
    """Advantages of one trajectory: delta_i = R_i + gamma V - V, and V = 0 at its end."""
    found, after = [], 0.0
    for place, reward in reversed(list(enumerate(rewards))):
        delta = reward + (discount * value if place < len(rewards) - 1 else 0.0) - value
        after = delta + discount * smoothing * after
        found.insert(0, after)
    return found


@acts("algorithm.ppo.discount", "algorithm.ppo.smoothing")
def ppo_advantages(lab: Lab) -> None:
    """By hand for A = 0.5, V = 0.7, gamma = 0.9, lambda = 0.5: -0.2, -0.07 - 0.09 and -0.07 - 0.072."""
    assert all(
        abs(a - b) < 1e-12 for a, b in zip(shared_out([0, 0, 0.5], 0.7, 0.9, 0.5), [-0.142, -0.16, -0.2], strict=True)
    )
    rows = prepared(lab.policy, PPO(value="mlp", discount=0.9, smoothing=0.5), 0.7)
    expected = [a for advantage in ADVANTAGE for a in shared_out([0, 0, advantage], 0.7, 0.9, 0.5)]
    close(rows.advantage, expected)
    close(rows.target, torch.tensor(expected) + 0.7)


@acts("algorithm.ppo.kl_estimator")
def ppo_kl_estimator(lab: Lab) -> None:
    policy = lab.policy
    rows = all_rows(policy.rollout)
    gap = policy.rollout.logp.flatten() - policy.task.reference(rows.transitions()).logp
    expected: dict[Any, Tensor] = {
        "exact": divergence(policy, rows), "k1": gap, "k3": (-gap).exp() - 1 + gap, "thesis": gap.exp() - 1 - gap,
    }  # fmt: skip
    for kind, values in expected.items():
        close(prepared(policy, PPO(value="mlp", kl_estimator=kind), 0.0, kl=0.5).kl, values, 1e-9)


@acts("algorithm.ppo.kl")
def ppo_kl(lab: Lab) -> None:
    """It is the weight of the first round; each step costs it times its divergence, all that follow included."""
    session = lab.session(algorithm=PPO(value="mlp", kl=0.5), advantage={"normalise": "base"})
    one_round(session)
    assert session.task.kl == 0.5
    policy = lab.policy
    cost = 0.5 * divergence(policy, all_rows(policy.rollout)).reshape(4, STEPS)
    found = prepared(policy, PPO(value="mlp", discount=1.0, smoothing=1.0), 0.0, kl=0.5).advantage
    expected = torch.tensor(ADVANTAGE)[:, None] - cost.flip(1).cumsum(1).flip(1)
    close(found, expected.flatten())


@acts("algorithm.ppo.kl_target", "algorithm.ppo.kl_horizon")
def ppo_controller(lab: Lab) -> None:
    """0.5625 a step is 2.25 over 4 steps, a tenth below 2.5: 0.1 (1 - 0.1 * 4 images / 100)."""
    algorithm = PPO(value="mlp", kl=0.1, kl_target=2.5, kl_horizon=100)
    config = lab.config(algorithm=algorithm, advantage={"normalise": "base"})
    session: Any = types.SimpleNamespace(config=config, state=State(), task=types.SimpleNamespace(kl=0.1))
    assert rounds.controlled_kl(session, {"kl": 0.5625}, 4) == {"kl_weight": 0.1, "kl_trajectory": 2.25}
    close(session.state.kl, 0.0996, 1e-12)
    # In a round it is given the divergence of a whole trajectory, and the next round has the weight.
    session = lab.session(trained=True, algorithm=replace(algorithm, kl_target=1e-9), advantage={"normalise": "base"})
    record = one_round(session)
    close(record["kl_trajectory"], 3 * record["kl"])
    assert record["kl"] > 1e-6
    close(session.state.kl, 0.1 * (1 + 0.2 * 4 / 100), 1e-12)
    assert one_round(session)["kl_weight"] == 0.1 * (1 + 0.2 * 4 / 100)


@acts("algorithm.ppo.clip")
def ppo_clip(lab: Lab) -> None:
    """With V = 0 and gamma = lambda = 1 each step has its image's advantage."""
    policy = lab.policy
    algorithm = PPO(value="mlp", clip=0.1, discount=1.0, smoothing=1.0)
    _, metrics = policy.loss(algorithm, policy.moved(LOG_RATIO), value=Constant(0.0), kl=0.0)
    close(metrics["policy_loss"], clipped(0.1))
    assert metrics["clip_fraction"].mean() == 1


@acts("algorithm.ppo.value_clip", "algorithm.ppo.value_weight")
def ppo_value_loss(lab: Lab) -> None:
    """Returns are the advantages, the old value is 0 and the new one 1, of which 0.1 is trusted."""
    policy, value = lab.policy, Constant(0.0)
    algorithm = PPO(value="mlp", value_clip=0.1, value_weight=3.0, discount=1.0, smoothing=1.0)
    task = replace(policy.task, value=value, kl=0.0)
    with torch.no_grad():
        rows = algorithm.prepare(task, policy.rollout)
        value.value = 1.0
        loss, metrics = algorithm.loss(task, rows)
    expected = each_step([0.5 * max((1 - r) ** 2, (0.1 - r) ** 2) for r in ADVANTAGE])
    close(metrics["value_loss"], expected)
    close(loss, metrics["policy_loss"] + 3 * expected)


@acts("algorithm.ppo.value")
def ppo_value(lab: Lab) -> None:
    for kind, cls in (("unet", UNetValue), ("cnn", DigitValue), ("conv", ConvValue), ("mlp", ConditionalMLP)):
        algorithm: Any = PPO(value=kind)  # type: ignore[arg-type]
        assert type(lab.session(algorithm=algorithm, advantage={"normalise": "base"}).task.value) is cls


@acts("algorithm.ppo.normalise")
def ppo_normalise(lab: Lab) -> None:
    for kind in ("minibatch", "none"):
        algorithm: Any = PPO(value="cnn", normalise=kind)  # type: ignore[arg-type]
        session = lab.session(algorithm=algorithm, advantage={"normalise": "base"}, optimizer={"updates": 1})
        with updates_seen(session) as seen:
            one_round(session)
        values = seen[0][0].advantages()
        mean, std = values.mean().item(), values.std(correction=0).item()
        if kind == "minibatch":
            close([mean, std], [0, 1])
        else:
            assert seen[0][0].unit is None
            assert abs(std - 1) > 0.01


# RWR, NFT, Diffusion-DPO.


@acts(
    "algorithm.rwr.noises", "algorithm.nft.noises", "algorithm.diffusion-dpo.noises", "algorithm.awm.noises",
    "algorithm.dgpo.noises", "algorithm.online-diffusion-dpo.noises", "algorithm.mapo.noises",
    "algorithm.diffusion-kto.noises",
)  # fmt: skip
def noises(lab: Lab) -> None:
    """Of 4 images, or of 2 pairs."""
    policy = lab.policy
    for algorithm, count in (
        (RWR(noises=3), 12), (NFT(noises=3), 12), (AWM(noises=3), 12), (DGPO(noises=3), 12),
        (DiffusionDPO(noises=3), 6), (OnlineDiffusionDPO(noises=3), 6), (MaPO(noises=3), 6),
        (DiffusionKTO(noises=3), 6),
    ):  # fmt: skip
        rows = algorithm.prepare(policy.task, policy.rollout)
        assert len(rows) == count
        assert rows.step_index.tolist() == [0, 1, 2] * (count // 3)


@acts(
    "algorithm.rwr.guided", "algorithm.nft.guided", "algorithm.diffusion-dpo.guided", "algorithm.awm.guided",
    "algorithm.dgpo.guided", "algorithm.online-diffusion-dpo.guided", "algorithm.mapo.guided",
    "algorithm.diffusion-kto.guided",
)  # fmt: skip
def guided(lab: Lab) -> None:
    """With guidance the network is given each row twice; pairs of images are two rows."""
    policy = lab.policy
    for algorithm, count in (
        (RWR(), 4), (NFT(noises=1), 4), (AWM(noises=1), 4), (DGPO(noises=1), 4), (DiffusionDPO(), 4),
        (OnlineDiffusionDPO(), 4), (MaPO(), 4), (DiffusionKTO(), 4),
    ):  # fmt: skip
        for value, factor in ((True, 2), (False, 1)):
            with network_calls(policy.model) as calls:
                policy.loss(replace(algorithm, guided=value))  # type: ignore[type-var]
            assert {size for size, _ in calls} == {factor * count}


def awm_losses(policy: Policy, algorithm: AWM, log_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, their mean square residuals and sigmas, as if the old log-probabilities had been lower by this."""
    with torch.no_grad():
        rows = algorithm.prepare(policy.task, policy.rollout)
        assert rows.before is not None
        noised = rows.noised(policy.task.times(policy.rollout.steps))
        error = policy.task.residual(noised).square().flatten(1).mean(dim=1)
        loss, _ = algorithm.loss(policy.task, replace(rows, before=rows.before - log_ratio))
    return loss, error, policy.model.process.scales(noised.t)[1]


@acts("algorithm.awm.clip")
def awm_clip(lab: Lab) -> None:
    loss, _, _ = awm_losses(lab.policy, AWM(noises=1, clip=0.2), 0.3)
    close(loss, [max(-a * math.exp(0.3), -a * 1.2) for a in ADVANTAGE])


@acts("algorithm.awm.weighting", "algorithm.awm.ghuber_power")
def awm_weighting(lab: Lab) -> None:
    """As if the old log-probabilities had been 0, they are -e, or -2 sigma sqrt(e)."""
    policy = lab.policy
    for algorithm in (AWM(noises=1, clip=1e9), AWM(noises=1, clip=1e9, weighting="ghuber", ghuber_power=0.5)):
        before = algorithm.prepare(policy.task, policy.rollout).before
        assert before is not None
        loss, error, sigma = awm_losses(policy, algorithm, 0.0)
        close(loss, [-a for a in ADVANTAGE])
        close(before, -error if algorithm.weighting == "uniform" else -2 * sigma * (error.sqrt() - 1e-5), 1e-5)


@acts("algorithm.awm.kl", "algorithm.dgpo.kl")
def forward_kl(lab: Lab) -> None:
    """Three times the mean square distance from the reference's output at the same time and noise."""
    policy = lab.policy
    for algorithm in (AWM(noises=1), DGPO(noises=1)):
        loss, metrics = policy.loss(replace(algorithm, kl=3.0))
        assert metrics["kl"].min() > 1e-4
        close(loss, policy.loss(algorithm)[0] + 3 * metrics["kl"], 1e-5)


@acts("algorithm.dgpo.beta")
def dgpo_beta(lab: Lab) -> None:
    """Advantages are times sigmoid(beta / 2 sum of A (e - e_ref)) of their group of two: logits in proportion to it."""
    policy, found = lab.policy, []
    for beta in (100.0, 25.0):
        rows = DGPO(beta=beta, noises=1).prepare(policy.task, policy.rollout)
        found.append(torch.logit(rows.advantages().double() / torch.tensor(ADVANTAGE)))
    assert found[1].abs().min() > 1e-4
    close(found[0] / found[1], [4, 4, 4, 4], 1e-2)


@acts("algorithm.dgpo.clip")
def dgpo_clip(lab: Lab) -> None:
    """As if all errors had fallen by 0.1: with A > 0 the images have moved enough."""
    policy = lab.policy
    algorithm = DGPO(noises=1, clip=0.05)
    with torch.no_grad():
        rows = algorithm.prepare(policy.task, policy.rollout)
        assert rows.before is not None
        rows = replace(rows, before=rows.before + 0.1)
        _, metrics = algorithm.loss(policy.task, rows)
        assert metrics["clip_fraction"].tolist() == [1, 0, 0, 1]
        assert replace(algorithm, clip=0.2).loss(policy.task, rows)[1]["clip_fraction"].sum() == 0
        assert "clip_fraction" not in replace(algorithm, clip=None).loss(policy.task, rows)[1]


def errors_of_pairs(policy: Policy) -> Tensor:
    """[2,4] denoising losses of the images of two pairs: the preferred one, the other, and those of the reference."""
    before = DiffusionKTO().prepare(policy.task, policy.rollout).before
    assert before is not None
    return before.double()


@acts("algorithm.mapo.beta", "algorithm.mapo.snr")
def mapo(lab: Lab) -> None:
    """e_w - 0.3 log sigmoid(1000 (s(e_w) - s(e_l))), s(e) = 2 e / (exp(2 e) - 1)."""
    good, bad, _, _ = errors_of_pairs(lab.policy).unbind(dim=1)
    margin = 1000 * (2 * good / (2 * good).expm1() - 2 * bad / (2 * bad).expm1())
    loss, metrics = lab.policy.loss(MaPO(beta=0.3, snr=2.0))
    close(loss, good + 0.3 * (1 + (-margin).exp()).log(), 1e-4)
    close(metrics["denoising_loss"], good, 1e-5)


@acts("algorithm.diffusion-kto.beta", "algorithm.diffusion-kto.good_weight", "algorithm.diffusion-kto.bad_weight")
def diffusion_kto(lab: Lab) -> None:
    """1 - sigmoid(z) is 1 / (1 + exp(z)); the level of an update is the mean of its rows', if it is not negative."""
    good, bad, ref, ref_bad = errors_of_pairs(lab.policy).unbind(dim=1)
    one, two = 1 / (1 + (30 * (ref - good)).exp()), 1 / (1 + (-30 * (ref_bad - bad)).exp())
    loss, _ = lab.policy.loss(DiffusionKTO(beta=30.0, good_weight=3.0, bad_weight=0.5))
    close(loss, (3 * one + 0.5 * two) / 2, 1e-5)
    session = lab.session(
        trained=True, algorithm=DiffusionKTO(), pairs=Pairs((str(given.pairs(lab.new("pairs"), 4)),)),
        optimizer={"updates": 2},
    )  # fmt: skip
    with updates_seen(session) as seen:
        one_round(session)
    for rows, _ in seen:
        assert rows.before is not None
        assert rows.level is not None
        close(rows.level, rows.before.mean(dim=0).expand_as(rows.before))
    assert not torch.equal(seen[0][0].level[0], seen[1][0].level[0])  # type: ignore[index]


@acts("algorithm.online-diffusion-dpo.beta", "algorithm.online-diffusion-dpo.pairs")
def online_diffusion_dpo(lab: Lab) -> None:
    """-log sigmoid(z) is log(1 + exp(-z)), and z is in proportion to beta; six pairs of four images."""
    policy = lab.policy
    margins = [torch.expm1(policy.loss(OnlineDiffusionDPO(beta=beta))[0].double()).log() for beta in (5.0, 20.0)]
    assert margins[0].abs().min() > 1e-4
    close(margins[1], 4 * margins[0], 1e-3)
    rollout = replace(policy.rollout, group=torch.zeros(4, dtype=torch.int64))
    assert len(OnlineDiffusionDPO(pairs="all").prepare(policy.task, rollout)) == 6
    assert len(OnlineDiffusionDPO(pairs="best-worst").prepare(policy.task, rollout)) == 1


@acts("algorithm.rwr.latents")
def rwr_latents(lab: Lab) -> None:
    policy = lab.policy
    vae, x0 = policy.model.pipeline.vae, policy.rollout.x0
    scale = vae.config.scaling_factor
    with torch.no_grad():
        expected = vae.encode(vae.decode(x0 / scale).sample.clamp(-1, 1)).latent_dist.mean * scale
    close(RWR(latents="vae").prepare(policy.task, policy.rollout).rollout.x0, expected, 1e-4)
    assert torch.equal(RWR(latents="sampler").prepare(policy.task, policy.rollout).rollout.x0, x0)


@acts("algorithm.nft.span")
def nft_span(lab: Lab) -> None:
    """(1 + clip(A / 2, -1, 1)) / 2 of 0.5, -1, -0.4 and 1.5; where nothing has moved the loss is 2 |v_old - v|^2."""
    policy, algorithm = lab.policy, NFT(noises=1, span=2.0, weighting="none")
    loss, metrics = policy.loss(algorithm)
    close(metrics["good"], [0.625, 0.25, 0.4, 0.875])
    before = algorithm.prepare(policy.task, policy.rollout).before
    assert before is not None
    close(loss, 2 * before.square().flatten(1).mean(dim=1), 1e-5)


@acts("algorithm.nft.beta", "algorithm.nft.weighting")
def nft(lab: Lab) -> None:
    """As if the sampling policy's residuals had been others by d: v+- is old +- beta d. The span of 5 is a factor."""
    policy = lab.policy
    good = torch.tensor([0.55, 0.4, 0.46, 0.65], dtype=torch.float64)  # (1 + A / 5) / 2
    for weighting in ("none", "adaptive"):
        algorithm = NFT(noises=1, beta=0.3, weighting=weighting)
        with torch.no_grad():
            rows = algorithm.prepare(policy.task, policy.rollout)
            assert rows.before is not None
            d = torch.randn(rows.before.shape, generator=torch.Generator().manual_seed(0))
            old = rows.before.double() - d
            loss, _ = algorithm.loss(policy.task, replace(rows, before=old))
        errors = []
        for residual in (old + 0.3 * d, old - 0.3 * d):
            square = residual.square().flatten(1).mean(dim=1)
            errors.append(square / residual.abs().flatten(1).mean(dim=1) if weighting == "adaptive" else square)
        close(loss, 5 * (good * errors[0] + (1 - good) * errors[1]) / 0.3, 1e-5)


@acts("algorithm.nft.sampling_decay", "algorithm.nft.sampling_decay_rate", "algorithm.nft.sampling_decay_after")
def nft_sampling_average(lab: Lab) -> None:
    """Two updates a round: of the decay's 0.3 for each update after the first three 0, 0.3 and 0.7, which is the most.

    The images of a round are drawn by the average, and residuals are of it, until it has moved."""
    algorithm = NFT(noises=1, sampling_decay=0.7, sampling_decay_rate=0.3, sampling_decay_after=3)
    session = lab.session(trained=True, algorithm=algorithm, optimizer={"lr": 0.1})
    assert session.sampling_average is not None
    session.sampling_average.sync()
    average, used = flat(weights(session)), []
    hook = session.model.pipeline.unet.register_forward_pre_hook(
        lambda *_: used.append((flat(weights(session)), torch.is_grad_enabled()))
    )
    for decay in (0.0, 0.3, 0.7):
        used.clear()
        close(one_round(session)["sampling_decay"], decay)
        without = [own for own, graph in used if not graph]
        assert len(without) == STEPS + 1  # sampling, and the residuals before the first update
        close(torch.stack(without), average.expand(STEPS + 1, -1))
        average = decay * average + (1 - decay) * flat(weights(session))
        close(flat(session.sampling_average.copies), average)
    hook.remove()
    assert lab.session(algorithm=NFT()).sampling_average is None


@acts("algorithm.nft.kl")
def nft_kl(lab: Lab) -> None:
    """The square of the distance from the reference's residual."""
    policy = lab.policy
    algorithm = NFT(noises=1, kl=3.0, weighting="none")
    rows = algorithm.prepare(policy.task, policy.rollout)
    assert rows.before is not None
    with torch.no_grad(), policy.model.weights.reference():
        base = NFT(noises=1, weighting="none").prepare(policy.task, policy.rollout).before
    square = (rows.before - base).square().flatten(1).mean(dim=1)
    assert square.min() > 1e-4
    loss, plain = policy.loss(algorithm)[0], policy.loss(replace(algorithm, kl=0.0))[0]
    close(loss, plain + 3 * square, 1e-5)


@acts("algorithm.diffusion-dpo.beta")
def diffusion_dpo_beta(lab: Lab) -> None:
    """-log sigmoid(-50 / 2 ((e - e') - (r - r'))) of the first two images against the last two."""
    policy = lab.policy
    rows = DiffusionDPO().prepare(policy.task, policy.rollout)
    assert rows.other is not None
    assert (rows.image.tolist(), rows.other.tolist()) == ([0, 1], [2, 3])
    sides = [rows.noised(range(1000)), rows.others().noised(range(1000), like=rows)]
    with torch.no_grad():
        mean = lambda side: policy.task.residual(side, guided=False).square().flatten(1).mean(dim=1)  # noqa: E731
        own = [mean(side) for side in sides]
        with policy.model.weights.reference():
            reference = [mean(side) for side in sides]
    margin = (own[0] - own[1]) - (reference[0] - reference[1])
    loss, _ = policy.loss(DiffusionDPO(beta=50.0))
    close(loss, (1 + (25 * margin).exp()).log(), 1e-5)


@acts("algorithm.diffusion-dpo.drop_captions")
def diffusion_dpo_drop_captions(lab: Lab) -> None:
    policy = lab.policy
    many, text = policy.rollout.draw, policy.rollout.cond["text"]
    empty = policy.model.encode([""], 1.0)["text"][0]
    share = []
    for round in range(20):
        rollout = replace(policy.rollout, draw=replace(many, round=round))
        found = DiffusionDPO(drop_captions=0.5).prepare(policy.task, rollout).rollout.cond["text"]
        dropped = [bool(torch.equal(states, empty)) for states in found]
        assert all(gone or torch.equal(a, b) for gone, a, b in zip(dropped, found, text, strict=True))
        share += dropped
    assert 20 < sum(share) < 60
