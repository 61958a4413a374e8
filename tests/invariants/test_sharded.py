"""A run whose network is sharded among processes (FSDP2) is the run on one, and leaves the same files behind.

accelerate shards on accelerators only; launched.py makes it shard on the CPU, through the same functions.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from diffusers import UNet2DConditionModel
from launched import asking_the_reference, run_lines
from safetensors.torch import load_file
from test_processes import distance, metrics, words

from forked import Group
from tastemaker.cli.main import main
from tastemaker.config.schema import Config, Speed
from tastemaker.errors import ConfigError
from tastemaker.runs import sharding

SMALL = ["--rounds", "2", "evaluation.every=2", "optimizer.clip_norm=0.05", "checkpoint.keep=9", "sampling.batch=8"]
FULL = ["--rounds", "1", "tuning.mode=full", "tuning.gradient_checkpointing=true"]
# As `accelerate launch --use_fsdp --fsdp_version 2` sets it, with its default of loading on the main process alone.
SHARDING = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
}


@pytest.fixture(scope="module")
def runs(checkpoint, tmp_path_factory):
    """Runs by name: of one process and of two that shard, with adapters and in full; and one that was resumed."""
    folder = tmp_path_factory.mktemp("runs")
    lines = {
        "lora": words(checkpoint, folder / "lora", *SMALL),
        "stopped": words(checkpoint, folder / "resumed", *SMALL, "--rounds", "1"),
        "resumed": ["resume", str(folder / "resumed"), "--rounds", "2"],
        "full": words(checkpoint, folder / "full", *SMALL, *FULL),
    }
    together = [word for line in lines.values() for word in ("--then", *line)][1:]
    group = Group(2, run_lines, "--sharded", *together, log=folder / "log", environment=SHARDING)
    with asking_the_reference():
        assert main(words(checkpoint, folder / "alone", *SMALL)) == 0
        assert main(words(checkpoint, folder / "alone-full", *SMALL, *FULL)) == 0
    assert group.finish().count("this process holds 50% of its weights") == len(lines)
    return folder


def files(one, two, name):
    return load_file(one / name), load_file(two / name)


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("what", ["weights", "optimizer"])
def test_the_checkpoint_is_whole_and_that_of_one_process(runs, mode, what):
    alone = runs / ("alone" if mode == "lora" else "alone-full")
    last = "step-000002" if mode == "lora" else "step-000001"
    one, two = files(alone, runs / mode, f"checkpoints/{last}/{what}.safetensors")
    kinds = [{name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} for tensors in (one, two)]
    assert kinds[0] == kinds[1]
    assert distance(one, two) < 1e-5
    base = load_file(alone / "checkpoints/step-000000/weights.safetensors")
    if what == "weights":
        assert distance(base, one) > 1e-3  # there was something to get wrong


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_gradients_rewards_and_the_reference_are_those_of_one_process(runs, mode):
    one, two = metrics(runs / ("alone" if mode == "lora" else "alone-full")), metrics(runs / mode)
    assert len(one) == len(two) == (4 if mode == "lora" else 3)
    for a, b in zip(one, two, strict=True):
        assert a.keys() - {"seconds/save"} == b.keys() - {"seconds/save"}
        for key in a.keys() & {"reward/mean", "eval/reward/mean", "reward/std", "grad_norm", "reference"}:
            # Adam forgives gradients of the wrong scale, but their norm does not.
            assert b[key] == pytest.approx(a[key], rel=1e-4), key
    assert any("reference" in record for record in two) == (mode == "lora")


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_resumed_is_uninterrupted(runs, name):
    uninterrupted, resumed = (runs / run / "checkpoints/step-000002" / name for run in ("lora", "resumed"))
    assert uninterrupted.read_bytes() == resumed.read_bytes()


def test_what_was_trained_is_written_whole(runs):
    one, two = files(runs / "alone", runs / "lora", "adapter/pytorch_lora_weights.safetensors")
    assert one.keys() == two.keys()
    assert distance(one, two) < 1e-5
    resumed = load_file(runs / "resumed/adapter/pytorch_lora_weights.safetensors")
    assert all(two[name].equal(resumed[name]) for name in two)
    wanted, found = (UNet2DConditionModel.from_pretrained(runs / f"{run}/model/unet") for run in ("alone-full", "full"))
    assert distance(wanted.state_dict(), found.state_dict()) < 1e-5
    settings = [(runs / f"{run}/model/unet/config.json").read_text() for run in ("alone-full", "full")]
    assert settings[0] == settings[1]


def test_a_sharded_run_goes_on_sharded_or_not_at_all(runs, capsys):
    assert main(["resume", str(runs / "lora"), "--rounds", "3"]) == 2
    errors = capsys.readouterr().err
    assert "processes 2 -> 1" in errors
    assert "sharded True -> None" in errors


@pytest.mark.parametrize(
    ("settings", "config", "message"),
    [
        (
            {"FSDP_VERSION": "1", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false", "FSDP_SYNC_MODULE_STATES": "false"},
            Config(),
            "--fsdp_version 2",
        ),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, Config(), "--fsdp_offload_params"),
        ({}, replace(Config(), speed=Speed(compile=True)), "speed.compile"),
        ({}, replace(Config(), optimizer=replace(Config().optimizer, eight_bit=True)), "optimizer.eight_bit"),
    ],
)
def test_what_does_not_work_sharded_is_refused_with_a_way_out(monkeypatch, settings, config, message):
    for name, value in (SHARDING | settings).items():
        monkeypatch.setenv(name, value)
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin()))
    with pytest.raises(ConfigError, match=f"{message}.*leave|give.*{message}|leave {message}"):
        sharding.check(config, accelerator)


def test_the_rest_is_left_alone():
    """Nothing about a network that is not sharded changes, and it gives its own weights."""
    network = torch.nn.Linear(2, 2)
    with sharding.whole(network, keep=False):
        assert network.state_dict()["weight"].data_ptr() == network.weight.data_ptr()
    assert sharding.gathered(dict(network.named_parameters()), keep=False) == {}
    assert sharding.like(network.weight, network.weight) is network.weight
