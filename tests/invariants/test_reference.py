"""The reference model: copies swapped in and out, full networks, moving, and what a checkpoint holds of it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from test_accumulation import config as a_config

from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.dpo import DPO
from tastemaker.algorithms.grpo import GRPO
from tastemaker.cli.main import main
from tastemaker.config.schema import Config, Reference
from tastemaker.diffusion import losses
from tastemaker.errors import CheckpointError, ConfigError, ModelError
from tastemaker.models.tuning import Tuning
from tastemaker.models.weight_copy import WeightCopy
from tastemaker.runs.checkpoint import State
from tastemaker.training import rounds, setup
from tastemaker.types import Transitions


def bits(model):
    return {name: (p.data_ptr(), p.detach().clone()) for name, p in model.weights.trainable().items()}


def move(model, scale=0.02):
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.weights.trainable().values():
            parameter.add_(scale * torch.randn_like(parameter))


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_swap_shows_the_held_model_and_leaves_the_weights_bitwise_as_they_were(model, mode):
    model.tune(Tuning(mode=mode))
    x, t = torch.randn(2, *model.latent_shape), torch.tensor([5, 800])
    cond = model.encode(["cat", "dog"], 3.0)
    with torch.no_grad():
        before = model.denoise(x, t, cond)
        model.weights.held = WeightCopy(model.weights.trainable())
        move(model)
        weights, after = bits(model), model.denoise(x, t, cond)
        with model.weights.reference():
            assert model.denoise(x, t, cond).equal(before)
        assert model.denoise(x, t, cond).equal(after)
    assert not after.equal(before)
    for name, parameter in model.weights.trainable().items():
        assert (parameter.data_ptr(), True) == (weights[name][0], parameter.equal(weights[name][1]))
    with pytest.raises(RuntimeError, match="in between"), model.weights.reference():
        raise RuntimeError("in between")
    assert all(parameter.equal(weights[name][1]) for name, parameter in model.weights.trainable().items())


def test_a_fully_tuned_model_that_holds_nothing_still_refuses(model):
    model.tune(Tuning(mode="full"))
    with pytest.raises(ModelError, match="no copy of the base model"), model.weights.reference():
        pass


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_of_a_divergence_is_that_with_a_second_network(model, checkpointing):
    """The reference's pass comes between the policy's forward and backward passes, and must not disturb them."""
    model.tune(Tuning(mode="full", gradient_checkpointing=checkpointing))
    other = copy.deepcopy(model.pipeline.unet)
    model.weights.held = WeightCopy(model.weights.trainable())
    move(model)
    x, t, text = (
        torch.randn(3, *model.latent_shape),
        torch.tensor([5, 400, 800]),
        model.encode(["a", "b", "c"], 1.0)["text"],
    )
    parameters = list(model.weights.trainable().values())

    def gradient(reference):
        out = model.network(x, t, text).sample
        with torch.no_grad():
            held = reference()
        return torch.autograd.grad(losses.mean_square(out - held).sum(), parameters)

    def swapped():
        with model.weights.reference():
            return model.network(x, t, text).sample

    for one, two in zip(gradient(swapped), gradient(lambda: other(x, t, text).sample), strict=True):
        assert one.equal(two)
        assert one.abs().sum() > 0 or one.numel() < 100


def settings(checkpoint, **options):
    made = a_config(checkpoint)
    fields = {"algorithm": GRPO(clip=0.1, kl=0.1), "rounds": 4} | options
    return Config(**{**{f: getattr(made, f) for f in made.__dataclass_fields__}, **fields})


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_right_after_a_move_the_divergence_is_exactly_zero(checkpoint, tmp_path, mode):
    made = settings(checkpoint, reference=Reference(every=2), tuning=Tuning(mode=mode))
    session = setup.start(made, tmp_path, State())
    kl, draws = [], []
    for _ in range(4):
        record = rounds.one_round(session)
        torch.manual_seed(1)
        size = (2, *session.model.latent_shape)
        rows = Transitions(
            torch.randn(size), torch.randn(size), torch.tensor([0, 2]), torch.zeros(2), torch.zeros(2),
            session.model.encode(["cat", "dog"], 5.0),
        )  # fmt: skip
        policy, reference = session.task.policy(rows), session.task.reference(rows)
        kl.append(losses.gaussian_kl(policy.mean, reference.mean, policy.std).sum().item())
        draws.append(record["kl"])
    assert kl[1] == kl[3] == 0
    assert min(kl[0], kl[2]) > 0
    assert min(draws) > 0


@pytest.mark.parametrize(
    ("algorithm", "tuning", "every", "held"),
    [
        (GRPO(kl=0.1), "full", 0, True), (GRPO(kl=0.1), "lora", 0, False), (GRPO(kl=0.1), "lora", 1, True),
        (GRPO(kl=0), "full", 0, False), (DDPO(), "full", 0, False), (DPO(), "full", 0, True),
        (DPO(reference="sampler"), "full", 0, False),
    ],
)  # fmt: skip
def test_a_copy_is_held_only_where_it_is_needed(checkpoint, tmp_path, algorithm, tuning, every, held):
    made = settings(checkpoint, algorithm=algorithm, tuning=Tuning(mode=tuning), reference=Reference(every=every))
    assert (setup.start(made, tmp_path, State()).model.weights.held is not None) == held


def test_a_reference_that_nothing_asks_for_is_refused(checkpoint):
    with pytest.raises(ConfigError, match="ddpo compares itself with no reference"):
        settings(checkpoint, algorithm=DDPO(), reference=Reference(every=1))


def words(checkpoint, out, *more):
    return [
        "train", "ddpo-compressibility", "--algorithm", "grpo", "--model", str(checkpoint), "--prompts",
        "ddpo-animals", "--rounds", "3", "--out", str(out), "sampling.steps=4", "sampling.samples=4",
        "sampling.per_prompt=2", "sampling.batch=4", "optimizer.updates=2", "optimizer.lr=1e-3", "algorithm.kl=1",
        "evaluation.every=3", "evaluation.prompts=1", "evaluation.per_prompt=2", "reference.every=2", *more,
    ]  # fmt: skip


def test_a_run_with_a_moving_reference_resumes_bit_for_bit(checkpoint, tmp_path, capsys):
    """The reference of round 3 is that of round 2: neither the base model nor what the checkpoint trains from."""
    assert main(words(checkpoint, tmp_path / "whole", "--rounds", "4", "checkpoint.keep=9")) == 0
    assert main(words(checkpoint, tmp_path / "cut")) == 0
    saved = tmp_path / "cut/checkpoints"
    two, three = (load_file(saved / f"step-00000{n}/copies.safetensors") for n in (2, 3))
    assert all(two[name].equal(three[name]) for name in two)
    weights = [load_file(saved / f"step-00000{n}/weights.safetensors") for n in (2, 3)]
    assert two.keys() == {f"reference.{name}" for name in weights[0]}
    assert all(two[f"reference.{name}"].equal(value) for name, value in weights[0].items())
    assert not all(two[f"reference.{name}"].equal(value) for name, value in weights[1].items())
    assert main(["resume", str(tmp_path / "cut"), "--rounds", "4"]) == 0
    for name in ("weights", "optimizer", "copies"):
        one, other = (load_file(tmp_path / f"{r}/checkpoints/step-000004/{name}.safetensors") for r in ("whole", "cut"))
        assert one.keys() == other.keys()
        assert all(one[key].equal(other[key]) for key in one), name
    rounds = []
    for run in ("whole", "cut"):
        records = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        rounds.append([{k: v for k, v in r.items() if "seconds" not in k} for r in records if "round" in r])
    assert rounds[0] == rounds[1]


def test_a_checkpoint_without_a_reference_is_refused_by_a_run_that_moves_it(tmp_path):
    from tastemaker.config.schema import Checkpoints
    from tastemaker.runs import checkpoint
    from tastemaker.runs.checkpoint import Training

    weights = {"a": torch.nn.Parameter(torch.ones(2))}
    plain = Training(weights, torch.optim.AdamW(weights.values()))
    checkpoint.save(tmp_path, State(1), plain, {}, Checkpoints())
    moving = Training(weights, torch.optim.AdamW(weights.values()), copies=WeightCopy(weights).copies)
    with pytest.raises(CheckpointError, match="not of a kind"):
        checkpoint.load(tmp_path, moving)
