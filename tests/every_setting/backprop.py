"""Cases of the algorithms that follow the reward's gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import smooth
import torch
from torch import Tensor

from every_setting import DRAW, Lab, acts, close, network_calls, one_round, updates_seen
from tastemaker import noise
from tastemaker.algorithms import direct_align
from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.direct_align import DirectAlign
from tastemaker.algorithms.draft import DRaFT
from tastemaker.algorithms.refl import ReFL
from tastemaker.diffusion.edict import coupled_chain
from tastemaker.diffusion.sampler import sample
from tastemaker.diffusion.sde import ddim
from tastemaker.training.session import Session
from tastemaker.types import Rollout


@dataclass
class Seen:
    """What an algorithm's loss of two images did."""

    loss: Tensor
    """[2]"""
    metrics: dict[str, Tensor]
    rewards: list[Tensor]
    """[2] each time that images were scored."""
    forward: list[int]
    """Batch sizes of the network's calls in the forward pass."""
    backward: list[int]
    """Of those in the backward pass."""
    blocks: bool
    """Whether blocks of the network are computed again in the backward pass."""


SHARED: WeakKeyDictionary[Lab, Session] = WeakKeyDictionary()
"""A session that all cases use which need none of their own."""
COUPLED: WeakKeyDictionary[Lab, Session] = WeakKeyDictionary()
"""The same for EDICT."""


def made(lab: Lab, algorithm: Any) -> Session:
    return lab.session(trained=True, algorithm=algorithm, reward="smooth:warmth")


def run(
    lab: Lab, algorithm: Any, grad_steps: Sequence[int], guidance: float = 1.0, session: Session | None = None
) -> Seen:
    """The loss of a cat and a dog in 3 steps, and its backward pass."""
    if session is None:
        if lab not in SHARED:
            SHARED[lab] = made(lab, AlignProp(checkpointing="step"))
        session = SHARED[lab]
    rewards: list[Tensor] = []
    note = lambda indices, images, values, parts: rewards.append(values)  # noqa: E731
    task, draw = replace(session.task, on_images=note), DRAW.select([0, 2])
    rows = algorithm.prepare(task, Rollout(session.model.encode(draw.prompts, guidance), draw))
    rows = replace(rows, grad_steps=torch.tensor([[step in grad_steps for step in range(3)]] * 2))
    with network_calls(session.model) as calls:
        loss, metrics = algorithm.loss(task, rows)
        forward = [size for size, _ in calls]
        loss.sum().backward()
        backward = [size for size, _ in calls][len(forward) :]
    blocks = any(getattr(module, "gradient_checkpointing", False) for module in session.model.pipeline.unet.modules())
    return Seen(loss.detach(), metrics, rewards, forward, backward, blocks)


# Each with the steps that it learns at.
ALL = ((AlignProp(), [1, 2]), (DRaFT(), [2]), (ReFL(guided=True), [2]), (DirectAlign(), [1]))


def objective(lab: Lab, place: int, chosen: str, target: float) -> tuple[Seen, float]:
    algorithm, grad_steps = ALL[place]
    return run(lab, replace(algorithm, objective=chosen, target=target), grad_steps), algorithm.scale


def distance(lab: Lab, place: int) -> None:
    """|R - (-1)| = R + 1, where a hinge would be 0 and the reward alone -R."""
    seen, scale = objective(lab, place, "distance", -1.0)
    assert seen.rewards[0].min() > 0
    close(seen.loss, scale * (seen.rewards[0] + 1))


def target(lab: Lab, place: int) -> None:
    seen, scale = objective(lab, place, "hinge", 5.0)
    close(seen.loss, scale * (5 - seen.rewards[0]))


def checkpointing(lab: Lab, place: int, forward: int, again: int) -> None:
    """the trained steps are computed again in the backward pass, and within them blocks, or nothing is."""
    algorithm, grad_steps = ALL[place]
    for kind, expected, blocks in (("none", 0, False), ("step", again, False), ("block", again, True)):
        own = replace(algorithm, checkpointing=kind)
        seen = run(lab, own, grad_steps, session=None if kind == "none" else made(lab, own))
        assert (len(seen.forward), len(seen.backward), seen.blocks) == (forward, expected, blocks), kind


def coupled(lab: Lab, place: int, trained: int) -> None:
    """`edict`: two calls a step, and again those of the trained steps in the backward pass."""
    algorithm, grad_steps = ALL[place]
    seen = run(lab, replace(algorithm, checkpointing="edict"), grad_steps, session=coupled_session(lab))
    assert (len(seen.forward), len(seen.backward)) == (6, 2 * trained)


def coupled_session(lab: Lab) -> Session:
    """A session whose steps have no noise."""
    if lab not in COUPLED:
        COUPLED[lab] = lab.session(
            trained=True, algorithm=AlignProp(checkpointing="edict"), reward="smooth:warmth", sampling={"eta": 0.0}
        )
    return COUPLED[lab]


def mixing_coeff(lab: Lab, place: int) -> None:
    """The loss is that of latents with p = 0.9, by the chain's own function, and not that with 0.93."""
    algorithm, grad_steps = ALL[place]
    session = coupled_session(lab)
    own = replace(algorithm, checkpointing="edict", mixing_coeff=0.9)
    seen = run(lab, own, grad_steps, session=session)
    draw = DRAW.select([0, 2])
    rewards = []
    for mixing in (0.9, 0.93):
        made = coupled_chain(
            session.model, session.model.encode(draw.prompts, 1.0), draw, session.task.sde, [], mixing=mixing
        )
        with torch.no_grad():
            rewards.append(smooth.warmth(session.model.decode(made.x0), draw.prompts))
    close(seen.rewards[0], rewards[0])
    assert (seen.rewards[0] - rewards[1]).abs().min() > 1e-5


def kl(lab: Lab, algorithm: Any, grad_steps: Sequence[int]) -> None:
    seen, scale = run(lab, replace(algorithm, kl=3.0), grad_steps), algorithm.scale
    divergence, reward = seen.metrics["divergence"], seen.rewards[0]
    assert divergence.min() > 1e-4
    plain = -reward if algorithm.objective == "reward" else (algorithm.target - reward).clamp(min=0)
    close(seen.loss, scale * plain + 3 * divergence)


@acts("algorithm.alignprop.objective")
def alignprop_objective(lab: Lab) -> None:
    distance(lab, 0)


@acts("algorithm.draft.objective")
def draft_objective(lab: Lab) -> None:
    distance(lab, 1)


@acts("algorithm.refl.objective")
def refl_objective(lab: Lab) -> None:
    distance(lab, 2)


@acts("algorithm.direct-align.objective")
def direct_align_objective(lab: Lab) -> None:
    distance(lab, 3)


@acts("algorithm.alignprop.target")
def alignprop_target(lab: Lab) -> None:
    target(lab, 0)


@acts("algorithm.draft.target")
def draft_target(lab: Lab) -> None:
    target(lab, 1)


@acts("algorithm.refl.target")
def refl_target(lab: Lab) -> None:
    target(lab, 2)


@acts("algorithm.direct-align.target")
def direct_align_target(lab: Lab) -> None:
    target(lab, 3)


@acts("algorithm.alignprop.checkpointing")
def alignprop_checkpointing(lab: Lab) -> None:
    checkpointing(lab, 0, 3, 2)
    coupled(lab, 0, 2)


@acts("algorithm.draft.checkpointing")
def draft_checkpointing(lab: Lab) -> None:
    checkpointing(lab, 1, 3, 1)
    coupled(lab, 1, 1)


@acts("algorithm.alignprop.mixing_coeff")
def alignprop_mixing_coeff(lab: Lab) -> None:
    mixing_coeff(lab, 0)


@acts("algorithm.draft.mixing_coeff")
def draft_mixing_coeff(lab: Lab) -> None:
    mixing_coeff(lab, 1)


@acts("algorithm.refl.checkpointing")
def refl_checkpointing(lab: Lab) -> None:
    checkpointing(lab, 2, 3, 1)


@acts("algorithm.direct-align.checkpointing")
def direct_align_checkpointing(lab: Lab) -> None:
    """Three steps of sampling, and the one that learns."""
    checkpointing(lab, 3, 4, 1)


@acts("algorithm.alignprop.kl")
def alignprop_kl(lab: Lab) -> None:
    kl(lab, AlignProp(), [1, 2])


@acts("algorithm.draft.kl")
def draft_kl(lab: Lab) -> None:
    kl(lab, DRaFT(), [2])


@acts("algorithm.refl.kl")
def refl_kl(lab: Lab) -> None:
    kl(lab, ReFL(guided=True), [2])


def drawn(algorithm: Any, count: int = 10, times: int = 300) -> list[list[int]]:
    generator = noise.choices(0, 1, 99)
    return [algorithm.steps(range(count), generator) for _ in range(times)]


@acts("algorithm.alignprop.truncation")
def alignprop_truncation(lab: Lab) -> None:
    """Fixed without a number is all; per step the i-th of ten, from 0, learns with probability (i + 1) / 11."""
    assert drawn(AlignProp(truncation="fixed")) == [list(range(10))] * 300
    found = drawn(AlignProp(truncation="per-step"))
    assert any(steps != list(range(steps[0], 10)) for steps in found)
    share = [sum(step in steps for steps in found) / 300 for step in (0, 5, 9)]
    assert all(abs(a - b) < 0.1 for a, b in zip(share, (1 / 11, 6 / 11, 10 / 11), strict=True))
    uniform = [len(steps) for steps in drawn(AlignProp(truncation="uniform"))]
    assert set(uniform) == set(range(1, 11))
    # ceil(N(5, 1)), which is 0.5 more on average.
    around = [len(steps) for steps in drawn(AlignProp(truncation="gaussian", last=5, spread=1.0))]
    assert abs(sum(around) / 300 - 5.5) < 0.25


@acts("algorithm.alignprop.last")
def alignprop_last(lab: Lab) -> None:
    assert drawn(AlignProp(truncation="fixed", last=3)) == [[7, 8, 9]] * 300


@acts("algorithm.alignprop.spread")
def alignprop_spread(lab: Lab) -> None:
    """Of 1000 steps the number that learns is 500, and 0.5 more by rounding up, with a deviation of 2."""
    counts = torch.tensor([len(s) for s in drawn(AlignProp(truncation="gaussian", last=500, spread=2.0), 1000)])
    assert abs(counts.float().mean() - 500.5) < 0.4
    assert abs(counts.float().std() - 2) < 0.4


def scaled(lab: Lab, place: int) -> None:
    """A quarter of -R; the divergence is not scaled."""
    algorithm, grad_steps = ALL[place]
    own = replace(algorithm, scale=0.25) if place == 3 else replace(algorithm, scale=0.25, kl=3.0)
    seen = run(lab, own, grad_steps)
    assert seen.rewards[0].abs().min() > 0.01
    close(seen.loss, -0.25 * seen.rewards[0] + 3 * seen.metrics.get("divergence", torch.zeros(2)))


@acts("algorithm.alignprop.scale")
def alignprop_scale(lab: Lab) -> None:
    scaled(lab, 0)


@acts("algorithm.draft.scale")
def draft_scale(lab: Lab) -> None:
    scaled(lab, 1)


@acts("algorithm.direct-align.scale")
def direct_align_scale(lab: Lab) -> None:
    scaled(lab, 3)


def images_per_draw(lab: Lab, algorithm: Any, lowest: int) -> list[list[int]]:
    """The steps of five that each image of an update of four learns at; and numbers `lowest` to `lowest` + 4.

    The numbers are the round's own choices, one for each two images.
    """
    session = lab.session(
        algorithm=replace(algorithm, images_per_draw=2), reward="smooth:warmth", sampling={"steps": 5},
        optimizer={"updates": 1},
    )  # fmt: skip
    with network_calls(session.model) as calls, updates_seen(session) as seen:
        one_round(session)
    assert {size for size, _ in calls} == {2}
    grad_steps = seen[0][0].grad_steps
    assert grad_steps is not None
    generator = noise.choices(session.config.seed, 1, 2)
    numbers = [int(generator.integers(lowest, lowest + 5)) for _ in range(2)]
    assert numbers[0] != numbers[1]
    return [[row.nonzero().flatten().tolist() for row in grad_steps], [numbers[place // 2] for place in range(4)]]


@acts("algorithm.alignprop.images_per_draw")
def alignprop_images_per_draw(lab: Lab) -> None:
    found, counts = images_per_draw(lab, AlignProp(), 1)
    assert found == [list(range(5 - count, 5)) for count in counts]


@acts("algorithm.refl.images_per_draw")
def refl_images_per_draw(lab: Lab) -> None:
    found, steps = images_per_draw(lab, ReFL(earliest=0.0), 0)
    assert found == [[step] for step in steps]


@acts("algorithm.direct-align.images_per_draw")
def direct_align_images_per_draw(lab: Lab) -> None:
    found, steps = images_per_draw(lab, DirectAlign(), 0)
    assert found == [[step] for step in steps]


@acts("algorithm.draft.last")
def draft_last(lab: Lab) -> None:
    assert drawn(DRaFT(last=3)) == [[7, 8, 9]] * 300
    assert drawn(DRaFT(last=None)) == [list(range(10))] * 300


@acts("algorithm.draft.noises", "algorithm.draft.ordinary")
def draft_noises(lab: Lab) -> None:
    """Three steps of sampling; each noise is one more call, and one more reward in the mean."""
    for ordinary in (False, True):
        algorithm = DRaFT(noises=2, ordinary=ordinary)
        seen = run(lab, algorithm, [2])
        assert len(seen.rewards) == algorithm.requirements.queries == 2 + ordinary
        assert (len(seen.forward), len(seen.backward)) == (5, 2 + ordinary)
        close(seen.loss, -torch.stack(seen.rewards).mean(dim=0))


@acts("algorithm.refl.earliest")
def refl_earliest(lab: Lab) -> None:
    assert {step for (step,) in drawn(ReFL(earliest=0.5))} == {5, 6, 7, 8, 9}


@acts("algorithm.refl.scale")
def refl_scale(lab: Lab) -> None:
    seen = run(lab, ReFL(scale=0.5, target=5.0), [2])
    close(seen.loss, 0.5 * (5 - seen.rewards[0]))


@acts("algorithm.refl.guided")
def refl_guided(lab: Lab) -> None:
    """With guidance the network is given the two images twice."""
    for guided, size in ((False, 2), (True, 4)):
        assert run(lab, ReFL(guided=guided), [2], guidance=3.0).forward == [size] * 3


@acts("algorithm.direct-align.noises")
def direct_align_noises(lab: Lab) -> None:
    algorithm = DirectAlign(noises=2)
    seen = run(lab, algorithm, [1])
    assert len(seen.rewards) == algorithm.requirements.queries == 2
    close(seen.loss, -torch.stack(seen.rewards).mean(dim=0))


@acts("algorithm.direct-align.jump")
def direct_align_jump(lab: Lab) -> None:
    """From step 0 to step 1: w x_0_theta + (1 - w) x_0 with w = 1 - alpha_0 sigma_1 / (alpha_1 sigma_0)."""
    seen = run(lab, DirectAlign(jump=1), [0])
    session = SHARED[lab]
    model, grid, draw = session.model, session.task.sde.grid, DRAW.select([0, 2])
    cond = model.encode(draw.prompts, 1.0)
    x0 = sample(model, cond, draw, ddim(grid, 1.0)).x0
    x = grid.alpha[0] * x0 + grid.sigma[0] * draw.noise(direct_align._NOISE, x0.shape[1:])
    w = 1 - grid.alpha[0] * grid.sigma[1] / (grid.alpha[1] * grid.sigma[0])
    assert 0.1 < w < 0.9
    with torch.no_grad():
        estimate = model.denoise(x.float(), grid.times[0].expand(2), cond)
        expected = smooth.warmth(model.decode((w * estimate + (1 - w) * x0).float()), draw.prompts)
    close(seen.rewards[0], expected, 1e-4)
