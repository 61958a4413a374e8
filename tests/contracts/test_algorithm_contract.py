"""Every algorithm keeps the contract, and breaking it is noticed."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

import tiny
from tastemaker.algorithms.base import Task
from tastemaker.algorithms.check import check_algorithm
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.registry import ALGORITHMS
from tastemaker.algorithms.requirements import Requirements
from tastemaker.diffusion.sampler import sample
from tastemaker.diffusion.sde import ddim
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.stable_diffusion import SD
from tastemaker.models.tuning import Tuning
from tastemaker.models.value import value_network
from tastemaker.types import Draw

DRAW = Draw(0, 1, ("a cat", "a cat", "a dog", "a dog"), (0, 0, 1, 1), (0, 1, 0, 1))


@pytest.fixture(scope="module")
def made():
    model = LatentUNet(SD, tiny.pipeline())
    torch.manual_seed(0)
    values = {kind: value_network(kind, model) for kind in ("unet", "mlp")}
    model.tune(Tuning(rank=2))
    random = torch.Generator().manual_seed(7)
    for name, parameter in sorted(model.weights.trainable().items()):
        if "lora_B" in name:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    sde = ddim(model.process.grid(4), 1.0)
    cond = model.encode(DRAW.prompts, 3.0, pooled=True)
    rollout = replace(
        sample(model, cond, DRAW, sde, sde.stochastic()), reward=torch.tensor([0.3, -0.6, 0.1, 2.0]),
        advantage=torch.tensor([0.5, -1.0, -0.4, 1.5]), group=torch.tensor([0, 0, 1, 1]),
    )  # fmt: skip
    return Task(model, sde, rows=8, kl=0.1), rollout, values


def task_for(algorithm, made):
    task, rollout, values = made
    training = algorithm.requirements.value
    return task if training is None else replace(
        task, value=values[training.kind], value_states=training.states
    ), rollout


@pytest.mark.parametrize("kind", ALGORITHMS.values(), ids=ALGORITHMS)
def test_algorithms_keep_the_contract(kind, made):
    assert check_algorithm(kind(), *task_for(kind(), made)) == []


@dataclass(frozen=True)
class Own:
    """A third party's algorithm, which is right or breaks the contract in one way."""

    name: ClassVar[str] = "own"
    needs: ClassVar[str] = "rollouts"
    fault: str = ""

    @property
    def requirements(self):
        return {} if self.fault == "requirements" else Requirements()

    def prepare(self, task, rollout):
        if self.fault == "selection":
            rollout = replace(rollout, selected=None)
        return DDPO().prepare(task, rollout)

    def loss(self, task, rows):
        loss, metrics = DDPO().loss(task, rows)
        if self.fault == "reduced":
            loss = loss.mean()
        if self.fault == "batch":
            loss = loss * loss.detach().abs().mean()
        if self.fault == "detached":
            loss = loss.detach()
        if self.fault == "nan":
            loss = loss * float("nan")
        return loss, metrics | ({"size": torch.zeros(())} if self.fault == "metric" else {})


FAULTS = {
    "": None, "requirements": "requirements is a dict", "selection": "rows where no image is selected",
    "reduced": "expected one loss for each", "batch": "do not add up", "detached": "has no gradient",
    "nan": "not finite", "metric": "the metric size",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_third_partys_algorithm_is_checked(fault, made):
    found = check_algorithm(Own(fault=fault), *made[:2])  # type: ignore[arg-type]
    if FAULTS[fault] is None:
        assert found == []
    else:
        assert any(re.search(FAULTS[fault], line) for line in found)
