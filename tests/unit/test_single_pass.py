"""Single-pass policy gradients against the two-pass form, and against each image alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from one_update import first_gradients
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import tiny
import tiny_flow
from every_setting import drift
from tastemaker.algorithms.base import Task
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.grpo import GRPO
from tastemaker.algorithms.pg import PG
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.rwr import RWR
from tastemaker.algorithms.selection import BestWorst, NonZero
from tastemaker.algorithms.windows import Backward
from tastemaker.config.engine_settings import RolloutEngine
from tastemaker.config.schema import Advantage, Config, Evaluation, Optimizer, Sampling, Speed
from tastemaker.diffusion.sampler import LocalSampler
from tastemaker.diffusion.sde import make_sde
from tastemaker.diffusion.single_pass import SinglePassSampler, weighted_sum
from tastemaker.errors import ConfigError, DivergedError, ModelError
from tastemaker.models import wrap_pipeline
from tastemaker.models.per_image import per_image
from tastemaker.models.tuning import Tuning
from tastemaker.runs.checkpoint import State
from tastemaker.training import rounds, setup
from tastemaker.training.plan import Calls, round_calls
from tastemaker.types import Draw, all_rows

PROMPTS = ("a cat", "a cat", "a dog")
DRAW = Draw(0, 1, PROMPTS, (0, 0, 1), (0, 1, 0))


def double(network: nn.Module) -> None:
    """The network in float64, whatever precision it is given."""
    network.double()
    wider = lambda value: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value  # noqa: E731
    network.register_forward_pre_hook(lambda _, *given: tree_map(wider, given), with_kwargs=True)


PIPELINES = {
    "latent": (tiny.pipeline, ("to_q", "conv1", "time_emb_proj"), PROMPTS, 3.0),
    "pixel": (lambda: tiny.pixels(classes=4), ("to_q", "to_out.0", "conv_shortcut"), ("0", "0", "1"), 3.0),
    "flow": (tiny_flow.sd3, ("to_q", "add_k_proj"), PROMPTS, 3.0),
    "flow without guidance": (tiny_flow.flux, ("to_q", "add_k_proj"), PROMPTS, 1.0),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_gradients_are_those_of_each_image_alone(name: str):
    """Sampled two at a time, against the sum over an image's steps of a second pass of the ordinary network."""
    pipeline, targets, prompts, guidance = PIPELINES[name]
    model: Any = wrap_pipeline(pipeline())
    if name == "pixel":  # four classes, of which the last stands for none
        model.null = 3
    if name.startswith("flow"):  # FLUX's own size has 4,096 tokens
        model.resize(16, 16)
    model.tune(Tuning(rank=2, targets=targets))
    double(model.network)
    drift(model)
    sde, weights = make_sde(model, 4, 1.0), torch.tensor([2.0, 3.0, 0.5, 1.0])
    keep, cond = sde.stochastic()[1:], model.encode(prompts, guidance)
    sampler = SinglePassSampler(LocalSampler(model, sde), model.weights, 2, weights)
    rollout = sampler(replace(DRAW, prompts=prompts), cond, keep)
    assert rollout.trajectory is not None
    found = rollout.trajectory.gradients
    assert found is not None
    assert all(p.grad is None for p in model.network.parameters())
    assert set(found) == set(model.weights.trainable())
    rows = all_rows(replace(rollout, advantage=torch.ones(3)))
    task = Task(model, sde)
    for image in range(3):
        step = rows.select(rows.image == image).transitions()
        loss = (weights[step.step] * task.log_prob(step)).sum()
        alone = torch.autograd.grad(loss, list(model.weights.trainable().values()))
        one = torch.cat([found[name][image].flatten() for name in model.weights.trainable()])
        two = torch.cat([gradient.flatten() for gradient in alone])
        assert two.norm() > 0
        assert (one - two).norm() < 1e-6 * two.norm()


def config(checkpoint: Any, **changes: Any) -> Config:
    base = Config(
        model=str(checkpoint), prompts="ddpo-animals", reward="smooth:redness", rounds=1, algorithm=PG(),
        sampling=Sampling(steps=4, samples=6, per_prompt=2, batch=4, guidance=5.0),
        advantage=Advantage(normalise="round", step_weights="noise"),
        optimizer=Optimizer(lr=1e-3, updates=1, rows=4, clip_norm=1e9),
        tuning=Tuning(rank=2, targets=("to_q", "conv1")), evaluation=Evaluation(prompts=1, per_prompt=2, kl_images=0),
    )  # fmt: skip
    return replace(base, **changes)


BRANCHES = {
    "selection": NonZero(), "window": Backward(2, 9), "algorithm": GRPO(kl=0.0),
    "sampling": Sampling(steps=4, samples=6, per_prompt=2, batch=4, guidance=5.0, branches=2, log_prob="sum"),
    "advantage": Advantage(normalise="group"),
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "pg": {},
    "score function": {"algorithm": DDPO(estimator="sf")},
    "weighted reward": {"algorithm": DPOK(kl=0.0, reward_weight=7.0, clip=1.0)},
    "branches": BRANCHES,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_rounds_gradient_is_that_of_two_passes(form: str, checkpoint: Any, tmp_path: Any):
    """In float64 up to the float32 in which latents are stored; the mean loss is the score function's."""
    two = config(checkpoint, **FORMS[form])
    one = replace(two, optimizer=replace(two.optimizer, single_pass=True))
    (expected, before), (found, record) = first_gradients(two, tmp_path / "two"), first_gradients(one, tmp_path / "one")
    a, b = (torch.cat([gradients[name].flatten().double() for name in expected]) for gradients in (expected, found))
    assert a.norm() > 0
    assert (a - b).norm() < 1e-6 * a.norm()
    for name in ("rows", "updates", "grad_norm", "lr", "reward/mean", "selected", "window", "advantage/std"):
        assert record[name] == pytest.approx(before[name], rel=1e-6, abs=1e-7), name
    if form == "score function":
        assert record["loss"] == pytest.approx(before["loss"], rel=1e-5, abs=1e-7)


def session(chosen: Config, folder: Any) -> Any:
    made = setup.start(chosen, folder, State())
    made.display.interactive = False
    return made


def test_the_floor_is_the_calls_of_a_round(checkpoint: Any, tmp_path: Any):
    """6 images in batches of 4 and 2, in passes of at most 3 with a graph: 4 are 3 and 1, each with its other half."""
    chosen = config(checkpoint, window=Backward(2, 9))
    chosen = replace(chosen, optimizer=replace(chosen.optimizer, single_pass=True, rows=3))
    made, seen = session(chosen, tmp_path), []
    made.model.network.register_forward_pre_hook(lambda _, x: seen.append((len(x[0]), torch.is_grad_enabled())))
    rounds.one_round(made)
    # Of four steps two are trained.
    expected = Calls({8: 2, 4: 2}, {6: 2, 2: 2, 4: 2})
    assert round_calls(chosen, made.task.sde.stochastic(), 1) == expected
    for grad, counts in ((False, expected.forward), (True, expected.backward)):
        assert {size: seen.count((size, grad)) for size in {size for size, kept in seen if kept == grad}} == counts


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"tuning": Tuning(rank=2, gradient_checkpointing=True)}])
def test_half_precision_and_recomputed_blocks_have_the_same_gradients(options: dict[str, Any], checkpoint, tmp_path):
    """In bfloat16, whose gradients have two or three digits, those of two passes are as far from float32."""
    base = config(checkpoint, tuning=Tuning(rank=2))
    reached = []
    for single, more in ((False, {}), (False, options), (True, options)):
        chosen = replace(base, optimizer=replace(base.optimizer, single_pass=single), **more)
        made = session(chosen, tmp_path)
        drift(made.model)
        start = {name: p.detach().clone() for name, p in made.model.weights.trainable().items()}
        optimizer: Any = made.optimizer
        found: list[Tensor] = []
        optimizer.optimizer.register_step_pre_hook(
            lambda own, *_, found=found: found.append(
                torch.cat([p.grad.flatten() for p in own.param_groups[0]["params"]])
            )
        )
        rounds.one_round(made)
        assert any(not p.equal(start[name]) for name, p in made.model.weights.trainable().items())
        reached.append(found[0])
    exact, two, one = reached
    assert one.dtype == torch.float32
    most = 1e-4 if "tuning" in options else 3 * ((two - exact).norm() / exact.norm()).item()
    assert ((one - exact).norm() / exact.norm()).item() < most < 0.5


def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(checkpoint: Any, tmp_path: Any):
    from tastemaker.config.yaml_file import dump_config
    from tastemaker.training.run import resume, train

    chosen = config(checkpoint, rounds=2, evaluation=Evaluation(every=9, prompts=1, per_prompt=2, kl_images=0))
    chosen = replace(chosen, optimizer=replace(chosen.optimizer, single_pass=True))
    train(chosen, tmp_path / "whole", command="train")
    train(replace(chosen, rounds=1), tmp_path / "cut", command="train")
    resume(tmp_path / "cut", rounds=2)
    files = [tmp_path / run / "checkpoints/step-000002/weights.safetensors" for run in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert dump_config(chosen) == (tmp_path / "whole/config.yaml").read_text()


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a divergence in the loss": ({"algorithm": GRPO()}, {}, "of the algorithm grpo is not that of an image's"),
    "another ratio": ({"algorithm": GRPO(kl=0.0, ratio="normalised")}, {}, "algorithm grpo is not that"),
    "advantages of steps": ({"algorithm": PPO()}, {}, "algorithm ppo is not that"),
    "a value network": ({"algorithm": DPOK(kl=0.0, value="mlp")}, {}, "algorithm dpok is not that"),
    "a regression": (
        {"algorithm": RWR(), "advantage": Advantage(normalise="softmax")}, {}, "algorithm rwr is not that",
    ),
    "the whole network": ({"tuning": Tuning(mode="full")}, {}, "tuning.mode is full"),
    "several updates": ({}, {"updates": 2}, "a round has 2 updates"),
    "several passes": ({}, {"inner_epochs": 3}, "a round has 3 updates"),
    "updates by selection": ({}, {"images_per_update": 6}, "images_per_update is 6: leave it out"),
    "some steps of each image": ({}, {"timestep_fraction": 0.5}, "timestep_fraction is 0.5"),
    "few images": ({"selection": BestWorst()}, {}, "selection is best-worst"),
    "a pass before the update": (
        {"sampling": Sampling(samples=6, per_prompt=2, recompute_log_prob=True)}, {}, "recompute_log_prob is true",
    ),
    "an engine": (
        {
            "sampling": Sampling(samples=6, per_prompt=2, engine="http://127.0.0.1:1"),
            "rollout_engine": RolloutEngine(folder="adapters"),
        },
        {}, "sampling.engine is set",
    ),
    "fp16": ({"precision": "fp16"}, {}, "precision is fp16"),
    "a compiled network": ({"speed": Speed(compile=True)}, {}, "speed.compile is true"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_cannot_be_combined_with_is_refused(what: str):
    changes, options, message = REFUSED[what]
    chosen = config("bundled", **{"advantage": Advantage(normalise="round")} | changes)
    with pytest.raises(ConfigError, match=message):
        replace(chosen, optimizer=replace(chosen.optimizer, **{"single_pass": True} | options))


def test_a_sharded_network_is_refused(checkpoint: Any, tmp_path: Any):
    chosen = config(checkpoint)
    chosen = replace(chosen, optimizer=replace(chosen.optimizer, single_pass=True))
    sharded: Any = SimpleNamespace(is_fsdp2=True, is_main_process=False, num_processes=1)
    with mock.patch.object(setup, "_accelerator", return_value=sharded), pytest.raises(ConfigError, match="is sharded"):
        setup.start(chosen, tmp_path, State())


def test_a_reward_that_is_not_finite_leaves_the_weights(checkpoint: Any, tmp_path: Any):
    chosen = config(checkpoint)
    made = session(replace(chosen, optimizer=replace(chosen.optimizer, single_pass=True)), tmp_path)
    before = copy.deepcopy({name: p.detach() for name, p in made.model.weights.trainable().items()})
    with (
        mock.patch.object(rounds, "advantages", return_value=torch.full((6,), float("nan"))),
        pytest.raises(DivergedError, match="not finite"),
    ):
        rounds.one_round(made)
    assert all(p.equal(before[name]) for name, p in made.model.weights.trainable().items())


# The layers.


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Linear(8, 8, bias=False)
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2, bias=False)
        self.tokens = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N,3] of [N,8]"""
        maps = self.conv(self.flat(x).view(-1, 2, 2, 2).repeat(1, 1, 2, 2))
        return self.tokens(maps.flatten(2).transpose(1, 2)).tanh().sum(dim=1)


def test_layers_have_each_images_own_gradient_from_all_its_rows():
    """Three images with two rows each, row i of image i modulo 3."""
    torch.manual_seed(0)
    network, x = Layers().double(), torch.randn(6, 8, dtype=torch.float64)
    before = list(network.modules())
    with per_image(network, 3) as copies:
        out = network(x)
        out.square().sum().backward()
    torch.testing.assert_close(out, network(x))
    assert list(network.modules()) == before
    for image in range(3):
        rows = network(x[image::3]).square().sum()
        for (name, copied), expected in zip(
            copies.items(), torch.autograd.grad(rows, list(network.parameters())), strict=True
        ):
            torch.testing.assert_close(copied.grad[image], expected, msg=name)
    weights = torch.tensor([1.0, 0.0, -2.0])
    gradients = {name: copied.grad for name, copied in copies.items()}
    for name, values in weighted_sum(gradients, weights).items():
        torch.testing.assert_close(values, gradients[name][0] - 2 * gradients[name][2])


def test_other_weights_and_other_rows_are_refused():
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.LayerNorm(2))
    with pytest.raises(ModelError, match=r"the trained weight 1\.weight is of a LayerNorm"), per_image(network, 2):
        pass
    network[1].requires_grad_(False)
    with (
        pytest.raises(ModelError, match=r"the layer of 0\.weight is given \[3, 2\] for 2 images"),
        per_image(network, 2),
    ):
        network(torch.zeros(3, 2))
    assert isinstance(network[0], nn.Linear)
    with pytest.raises(ModelError, match="of a Linear"), per_image(nn.Linear(2, 2), 2):
        pass
