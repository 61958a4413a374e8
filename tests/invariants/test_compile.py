"""torch.compile in whole rounds: the same results, nothing compiled after the first one, and its seconds apart."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from launched import run_lines
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from torch._inductor.exc import InvalidCxxCompiler

import small_network
from forked import Group
from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.dpo import DPO
from tastemaker.algorithms.grpo import GRPO
from tastemaker.algorithms.nft import NFT
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.selection import NonZero
from tastemaker.algorithms.windows import Backward, Random
from tastemaker.cli.main import main
from tastemaker.config.schema import Advantage, Config, Evaluation, Optimizer, Sampling, Speed
from tastemaker.errors import ConfigError
from tastemaker.models import compiling
from tastemaker.models.compiling import CACHE, StaticRows, compile_network, in_full_calls
from tastemaker.models.tuning import Tuning
from tastemaker.runs.checkpoint import State
from tastemaker.training import rounds, speed
from tastemaker.training import session as session_module
from tastemaker.training.evaluations import evaluate_run
from tastemaker.training.isolation import isolated
from tastemaker.training.recording import timings
from tastemaker.training.session import Session
from tastemaker.training.setup import start
from tastemaker.training.static_rows import static_rows

pytestmark = [
    # torch's compiler uses what torch deprecates, and looks for gradients of tensors that have none.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

# Batches that do not divide: 10 images by 4, and 5 of each update with their steps by 8.
BASE = Config(
    model="small_network:small", prompts="ddpo-animals", reward="soft-colourfulness", algorithm=DDPO(),
    advantage=Advantage(normalise="round"),
    sampling=Sampling(steps=4, samples=10, per_prompt=5, batch=4, guidance=3.0),
    optimizer=Optimizer(lr=1e-2, updates=2, rows=8, clip_norm=1e9),
    tuning=Tuning(rank=2, targets=("to_q", "to_v")),
    evaluation=Evaluation(prompts=3, per_prompt=2, kl_images=2),
)  # fmt: skip
DETERMINISTIC = replace(BASE.sampling, eta=0.0)
CASES: dict[str, dict[str, Any]] = {
    "ddpo": {},
    "no guidance": {"sampling": replace(BASE.sampling, guidance=1.0)},
    "reference": {"algorithm": GRPO()},
    "value network": {"algorithm": PPO(kl=0.1, value="conv")},
    "denoising": {"algorithm": NFT(guided=False, kl=0.1, noises=3)},
    "pairs": {"algorithm": DPO()},
    "branches": {"sampling": replace(BASE.sampling, branches=5, batch=5), "window": Backward()},
    "random window": {"window": Random(size=2)},
    "gradient checkpointing": {"tuning": replace(BASE.tuning, gradient_checkpointing=True)},
    "alignprop": {"algorithm": AlignProp(checkpointing="step", kl=0.1), "sampling": DETERMINISTIC},
    "alignprop, block": {"algorithm": AlignProp(checkpointing="block"), "sampling": DETERMINISTIC},
    "channels-last": {"speed": Speed(channels_last=True)},
    "bf16": {"precision": "bf16"},
}
QUICK = ("ddpo", "reference", "branches", "alignprop")
"""Those of `make test`: a case takes about five seconds, in which torch's compiler traces the network."""


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch):
    """Nothing is left of other tests, and the backend traces forward and backward passes without making code."""
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(speed, "compile_network", partial(compile_network, backend="aot_eager"))


def session_of(folder, compiled: bool, **changes: Any) -> Session:
    config = replace(BASE, **changes)
    config = replace(config, speed=replace(config.speed, compile=compiled))
    made = start(config, folder, State())
    made.display.interactive = False
    return made


def three_rounds(session: Session) -> list[int]:
    """What a run does; returns how many versions there are of the network after each round."""
    counts = []
    evaluate_run(session)
    for _ in range(3):
        rounds.one_round(session)
        evaluate_run(session)
        counts.append(counters["stats"]["unique_graphs"])
    return counts


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_compiled_rounds_learn_the_same_and_compile_nothing_after_the_first(name: str, tmp_path):
    with isolated():
        plain = session_of(tmp_path, False, **CASES[name])
        assert three_rounds(plain) == [0, 0, 0]
    with isolated():
        compiled = session_of(tmp_path, True, **CASES[name])
        first, second, third = three_rounds(compiled)
    assert first == second == third > 1
    assert not counters["graph_break"]
    one, two = plain.model.weights.trainable(), compiled.model.weights.trainable()
    assert one.keys() == two.keys()
    start = session_of(tmp_path, False, **CASES[name]).model.weights.trainable()
    a, b, zero = (torch.cat([part[key].detach().flatten() for key in one]) for part in (one, two, start))
    moved = (a - zero).norm()
    assert moved > 0.01
    assert (a - b).norm() < (0.05 if name == "bf16" else 1e-3) * moved


def test_without_a_base_model_to_ask_there_is_one_version_for_sampling_and_one_for_training(tmp_path):
    """Sampling and evaluations have 4 images, updates 8 rows, all with both halves of the guidance."""
    with isolated():
        session = session_of(tmp_path, True, evaluation=replace(BASE.evaluation, kl_images=0))
        assert session.static == StaticRows((8, 16), (16,))
        assert three_rounds(session)[-1] == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # 4 images with both halves; 8 rows with both halves.
        ({}, StaticRows((4, 8, 16), (16,))),
        ({"sampling": replace(BASE.sampling, guidance=1.0)}, StaticRows((2, 4, 8), (8,))),
        # Five branches of one root, and the root; the base model's 2 images are in a batch of their own.
        ({"sampling": replace(BASE.sampling, branches=5, batch=5)}, StaticRows((2, 4, 10, 16), (16,))),
        # Training is not guided: 8 rows.
        ({"algorithm": NFT(guided=False)}, StaticRows((4, 8), (8,))),
        # Both of a pair with both halves.
        ({"algorithm": DPO()}, StaticRows((4, 8, 32), (32,))),
        # 5 images an update, fewer than 8.
        ({"algorithm": AlignProp()}, StaticRows((4, 8, 10), (10,))),
        ({"algorithm": AlignProp(images_per_draw=1)}, StaticRows((2, 4, 8, 10), (2, 10))),
        # An update has as many of its rows as are selected: 2 rows, a quarter of 8, are a call too.
        ({"selection": NonZero()}, StaticRows((4, 8, 16), (4, 16))),
    ],
)
def test_full_calls_follow_from_the_settings(changes: dict[str, Any], expected: StaticRows):
    assert static_rows(replace(BASE, **changes), [3]) == expected


def test_two_processes_have_half_the_images_each():
    # 5 images on each: a batch of 4 is full; 2 or 3 images an update, with 4 steps each.
    assert static_rows(BASE, [3], 2) == StaticRows((4, 8, 16), (16,))
    # They have to call the network equally often, however many rows are selected on each.
    assert static_rows(replace(BASE, selection=NonZero()), [3], 2).backward == (16,)
    assert static_rows(replace(BASE, sampling=replace(BASE.sampling, batch=50)), [3], 2).forward == (4, 10, 12, 16)


@pytest.mark.parametrize(
    ("rows", "size", "filled"),
    # 39 rows in one call of 64 would be 25 too many, and in three of 16 they are 9 too many; 49 are 64 in either.
    [(39, 16, 48), (49, 64, 64), (64, 64, 64), (16, 16, 16), (1, 16, 16), (65, 65, 65)],
)
def test_calls_are_cut_where_that_makes_fewer_rows(rows: int, size: int, filled: int):
    static = StaticRows((64,), (16, 64))
    assert (static.call_size(rows, True), static.filled(rows, True)) == (size, filled)
    assert static.filled(rows, False) == max(rows, 64)


def test_a_call_is_not_cut_into_many_small_ones():
    """125 rows are 126 in 63 calls of 2, but one call of 128 is quicker. A call above all sizes stays what it is."""
    static = StaticRows((2, 128), ())
    assert [static.call_size(rows, False) for rows in (1, 2, 3, 125, 200)] == [2, 2, 128, 128, 200]
    assert static.call_size(5, True) == 5


def test_rows_that_fill_a_call_up_change_neither_values_nor_gradients():
    model = small_network.small()
    model.tune(BASE.tuning)
    for parameter in model.weights.trainable().values():
        torch.nn.init.normal_(parameter)
    cond = model.encode(["a", "b", "c"], 1.0)
    x, t = torch.randn(3, *model.latent_shape, requires_grad=True), torch.tensor([900, 500, 1])
    whole, called = in_full_calls(model.predict, StaticRows((), (4, 8))), []
    model.network.register_forward_pre_hook(lambda _, inputs: called.append(inputs[0].detach()))
    leaves = [x, *model.weights.trainable().values()]
    plain = model.predict(x, t, cond)
    filled = whole(x, t, cond)
    assert [len(inputs) for inputs in called] == [3, 4]
    # The last row again: no values that the network has never seen.
    assert torch.equal(called[1], torch.cat([x, x[2:]]))
    assert filled.shape == plain.shape
    torch.testing.assert_close(filled, plain)
    direction = torch.randn_like(plain)
    one, two = (torch.autograd.grad((out * direction).sum(), leaves) for out in (plain, filled))
    for a, b in zip(one, two, strict=True):
        # A call of another size rounds differently, by processor up to 2e-5 of a gradient of 2.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    # 5 rows are 6 in two calls of 3, and 8 in one.
    cut = in_full_calls(model.predict, StaticRows((), (3, 8)))
    five = torch.cat([x, x[:2]]), torch.cat([t, t[:2]]), model.encode(["a", "b", "c", "a", "b"], 1.0)
    one, two = model.predict(*five), cut(*five)
    assert [len(inputs) for inputs in called[2:]] == [5, 3, 3]
    torch.testing.assert_close(one, two)
    direction = torch.randn_like(one)
    for a, b in zip(*(torch.autograd.grad((out * direction).sum(), leaves) for out in (one, two)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    del called[2:]
    # Without a graph there is no larger call here, and one that is larger than all stays what it is.
    with torch.no_grad():
        whole(x, t, cond)
    whole(torch.cat([x, x, x]), torch.cat([t, t, t]), model.encode(["a"] * 9, 1.0))
    assert [len(inputs) for inputs in called[2:]] == [3, 9]


def test_seconds_of_compiling_are_no_part_of_the_round_nor_of_what_is_left(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    spent = [0.0]
    monkeypatch.setattr(session_module, "compile_seconds", lambda: spent[0])
    with isolated():
        session = session_of(tmp_path, True)
    begun = session.display.started
    with session.phase("train", 1):
        clock[0] += 7
        spent[0] += 5
    clock[0] += 1
    assert session.display.started == begun + 5
    assert timings(session, 0.0) == {
        "seconds/round": 3, "seconds/train": 2, "seconds/compile": 5, "seconds/score": 0,
    }  # fmt: skip
    session.config = replace(session.config, speed=Speed())
    with session.phase("train", 1):
        spent[0] += 5
    assert "seconds/compile" not in timings(session, 0.0)


def test_compiled_code_is_kept_in_the_user_s_cache_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv(CACHE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(speed, "compile_network", compile_network)
    with isolated():
        session_of(tmp_path, True)
        assert os.environ[CACHE] == str(tmp_path / "tastemaker/torch-compile") == compiling.cache_folder()
    assert CACHE not in os.environ
    monkeypatch.setenv(CACHE, str(tmp_path / "mine"))
    with isolated():
        session_of(tmp_path, True)
        assert compiling.cache_folder() == str(tmp_path / "mine")


def test_no_compiler_is_said_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "compile_network", compile_network)
    with (
        mock.patch("torch._inductor.cpp_builder.get_cpp_compiler", side_effect=InvalidCxxCompiler()),
        isolated(),
        pytest.raises(ConfigError, match=r"found no compiler for C\+\+ .* install g\+\+"),
    ):
        session_of(tmp_path, True)


def words(out, *more: str) -> list[str]:
    return [
        "train", "grpo-compressibility", "--model", "small_network:small", "--out", str(out), "--prompts",
        "ddpo-animals", "--reward", "smooth:redness", "--rounds", "2", "sampling.steps=4", "sampling.samples=12",
        "sampling.per_prompt=3", "sampling.batch=4", "optimizer.updates=2", "optimizer.rows=8", "optimizer.lr=1e-2",
        "tuning.targets=to_q,to_v", "evaluation.every=2", "evaluation.prompts=2", "evaluation.per_prompt=2", *more,
    ]  # fmt: skip


def test_two_processes_with_a_compiled_network_learn_what_one_learns(tmp_path, monkeypatch):
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert main(words(alone)) == 0
    Group(2, run_lines, "--compiled", *words(both, "--speed.compile"), log=tmp_path / "log").finish()
    one, two = (load_file(run / "checkpoints/step-000002/weights.safetensors") for run in (alone, both))
    for name, values in one.items():
        torch.testing.assert_close(two[name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_second_run_finds_what_the_first_one_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "compile_network", compile_network)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    assert main(words(tmp_path / "run", "--rounds", "1", "--speed.compile")) == 0
    assert not counters["inductor"]["fxgraph_cache_hit"]
    torch.compiler.reset()
    assert main(["resume", str(tmp_path / "run"), "--rounds", "2"]) == 0
    assert counters["inductor"]["fxgraph_cache_hit"] or counters["aot_autograd"]["autograd_cache_hit"]
