"""The plan of a run against hand counts and a run's real calls, and `--dry-run`, which starts and writes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

import tiny
from tastemaker.cli.main import main
from tastemaker.config.presets import PRESETS
from tastemaker.config.schema import Config, PriorPreservation
from tastemaker.models import load_meta_model, load_model
from tastemaker.models.memory_settings import Memory
from tastemaker.training.plan import Calls, Facts, estimated_memory, make_plan, round_calls
from tastemaker.training.preflight import preflight

FACTS = Facts(
    network=1000, trainable=100, value=0, text_encoder=200, vae=300, outputs=50, decoder_outputs=70, height=32,
    width=48, stochastic=(0, 1, 2), prompts=5, unseen=0,
)  # fmt: skip
BASE = Config()
SMALL = replace(
    BASE,
    rounds=4,
    sampling=replace(BASE.sampling, samples=12, steps=4, batch=8),
    optimizer=replace(BASE.optimizer, updates=2, rows=4),
    evaluation=replace(BASE.evaluation, every=2, prompts=8, per_prompt=2),
)


def test_counts_by_hand():
    plan = make_plan(SMALL, FACTS)
    # 12 images in batches of 8 and 4, each with its unconditional half, at 4 steps.
    # 3 stochastic steps of 6 images are 18 rows an update: four batches of 4 and one of 2.
    assert plan.first_round == Calls({16: 4, 8: 4}, {8: 8, 4: 2})
    assert (plan.rounds, plan.updates, plan.images) == (4, 8, 48)
    assert plan.sampling_rows == 4 * 12 * 4 * 2
    assert plan.training_rows == 4 * 12 * 3 * 2
    # The base model, and after rounds 2 and 4: five prompts, since there are no more.
    assert (plan.evaluations, plan.evaluation_images) == (3, 30)
    # Of eight images in each the divergence is measured: four steps more, of which three are asked of two models.
    assert plan.evaluation_rows == 30 * 4 * 2 + 3 * 8 * (4 + 2 * 3) * 2
    assert (plan.training_rewards, plan.evaluation_rewards) == (48, 30)
    assert (plan.reference_rows, plan.prior_rows) == (0, 0)


def test_processes_share_the_rows():
    plan = make_plan(SMALL, replace(FACTS, processes=2))
    assert plan.first_round == Calls({12: 4}, {8: 4, 2: 2})
    assert plan.sampling_rows == make_plan(SMALL, FACTS).sampling_rows
    assert plan.training_rows == make_plan(SMALL, FACTS).training_rows


def test_prior_preservation_and_unseen_prompts_are_counted():
    config = replace(SMALL, prior_preservation=PriorPreservation(weight=0.1, rows=3))
    plan = make_plan(config, replace(FACTS, unseen=4))
    assert plan.prior_rows == 8 * 3
    assert plan.evaluation_images == 3 * (5 + 4) * 2


def test_an_algorithm_with_a_reference_and_several_queries():
    draft = PRESETS["draft-lv-compressibility"].config
    assert make_plan(draft, FACTS).training_rewards == draft.rounds * draft.sampling.samples * 2
    dpo = PRESETS["dpo-compressibility"].config
    plan = make_plan(dpo, FACTS)
    assert plan.reference_rows == plan.training_rows > 0


def test_an_algorithm_of_fixed_depth_by_hand():
    draft = PRESETS["draft-compressibility"].config  # the last step of each chain has a gradient
    s, o = draft.sampling, draft.optimizer
    calls = round_calls(draft, (), 1)
    rows = s.samples * 2
    assert sum(size * count for size, count in calls.backward.items()) == rows
    assert sum(size * count for size, count in calls.forward.items()) == rows * (s.steps - 1)
    assert sum(calls.backward.values()) == o.updates * -(-(s.samples // o.updates) // o.rows)


def test_memory_by_hand():
    found = estimated_memory(SMALL, FACTS, rows=8)
    assert found == {
        "network": 4 * (1000 + 100), "text encoder and VAE": 4 * 500, "prompt states": 0, "gradients": 400,
        "gradients of images": 0, "optimizer state": 800, "copies of the trained weights": 0,
        "activations (rough)": 8 * 50 * 4,
    }  # fmt: skip
    whole = replace(
        SMALL,
        precision="bf16",
        tuning=replace(SMALL.tuning, mode="full", gradient_checkpointing=True),
        optimizer=replace(SMALL.optimizer, ema=0.9, eight_bit=True),
    )
    found = estimated_memory(whole, replace(FACTS, trainable=1000), rows=8)
    assert found == {
        "network": 4000, "text encoder and VAE": 2 * 200 + 4 * 300, "prompt states": 0, "gradients": 4000,
        "gradients of images": 0, "optimizer state": 2000, "copies of the trained weights": 4000,
        "activations (rough)": pytest.approx(8 * 50 * 2 * 0.25),
    }  # fmt: skip


# What autograd keeps of one row at full size, as a share of the outputs of all layers, without and with gradient
# checkpointing, as benchmarks/activations.py counts it: the blocks' inputs and the largest block's own add up.
COUNTED = {
    "UNet2DConditionModel": (0.977, 0.173 + 0.077),  # Stable Diffusion 1.5
    "SD3Transformer2DModel": (0.751, 0.065 + 0.031),  # Stable Diffusion 3 medium
    "FluxTransformer2DModel": (0.793, 0.064 + 0.015),  # FLUX.1-dev
    "Flux2Transformer2DModel": (1.046, 0.062 + 0.046),  # FLUX.2 klein base 4B
    "ZImageTransformer2DModel": (1.151, 0.059 + 0.036),  # Z-Image
}


@pytest.mark.parametrize("name", COUNTED)
def test_activations_against_what_was_counted(name):
    """Not less than what is kept, and at most 0.06 of the outputs more."""
    facts = replace(FACTS, outputs=10**6, network_class=name)
    for checkpointing, counted in enumerate(COUNTED[name]):
        config = replace(SMALL, tuning=replace(SMALL.tuning, gradient_checkpointing=bool(checkpointing)))
        estimate = estimated_memory(config, facts, rows=1)["activations (rough)"]
        assert counted * 4e6 - 1 <= estimate <= (counted + 0.06) * 4e6


def test_memory_of_a_single_pass_by_hand():
    """A float32 gradient of each trained weight for each image of a process: 100 * 4 bytes * 32 / 2 processes."""
    config = replace(SMALL, sampling=replace(SMALL.sampling, samples=32), optimizer=replace(SMALL.optimizer, updates=1))
    single = replace(config, optimizer=replace(config.optimizer, single_pass=True))
    found = estimated_memory(single, replace(FACTS, processes=2), rows=8)
    before = estimated_memory(config, replace(FACTS, processes=2), rows=8)
    assert found == before | {"gradients of images": 100 * 4 * 16}


def test_memory_of_small_gpus_by_hand():
    """Of 1000 weights in bf16 800 are in linear layers; text encoders of 120 and 80, a VAE of 30 in float32."""
    facts = replace(
        FACTS, linear=800, vae=30, largest_text_encoder=120, decoder_peak=1000, tile=0.25, prompt_state=10, unseen=2
    )
    saving = replace(
        SMALL,
        precision="bf16",
        tuning=replace(SMALL.tuning, base_weights="nf4"),
        memory=Memory(offload=True, vae_slicing=True, vae_tiling=True),
    )
    found = estimated_memory(saving, facts, rows=8)
    # 4 bits each, and 4 bytes for each 64: 800 / 2 + 800 / 64 * 4 = 450; adapters in float32.
    assert found["network"] == 2 * 200 + 450 + 4 * 100
    assert found["text encoder or VAE, one at a time"] == max(2 * 120, 4 * 30)
    assert found["prompt states"] == 10 * (5 + 2 + 1) * 4
    assert found["activations (rough)"] == max(8 * 50 * 2, 1000 * 1 * 4 * 0.25)
    eight = replace(saving, tuning=replace(saving.tuning, base_weights="int8"), memory=Memory(vae_tiling=True))
    found = estimated_memory(eight, facts, rows=8)
    assert found["network"] == 2 * 200 + 800 + 4 * 100
    assert found["text encoder and VAE"] == 2 * 200 + 4 * 30
    assert found["activations (rough)"] == 1000 * 8 * 4 * 0.25  # a batch of 8 images
    plain = estimated_memory(replace(eight, memory=Memory()), facts, rows=8)
    assert plain["activations (rough)"] == 1000 * 8 * 4


def test_facts_of_the_bundled_model_for_small_gpus():
    model = load_model("bundled")
    facts = preflight(Config(prompts="bundled-single"), None)
    linear = [layer for layer in model.network.modules() if isinstance(layer, nn.Linear)]
    assert facts.linear == sum(layer.weight.numel() for layer in linear)
    assert 0 < facts.linear < facts.network
    assert facts.network_class == "UNet2DConditionModel"
    flow = preflight(Config(model="bundled-flow", prompts="bundled-single"), None)
    assert flow.network_class == "SD3Transformer2DModel"
    assert facts.largest_text_encoder == facts.text_encoder
    assert facts.prompt_state == model.encode([""], 1.0)["text"].numel()
    assert 0 < facts.decoder_peak < facts.decoder_outputs
    assert facts.tile == 1.0


@pytest.mark.parametrize("setting", ["memory.vae_tiling=true", "memory.prompt_states=true"])
def test_dry_run_knows_what_a_model_has_not(tmp_path: Path, setting: str, capsys: pytest.CaptureFixture[str]):
    tiny.pixels(channels=3).save_pretrained(tmp_path / "pixels")
    words = ["train", "ddpo-compressibility", "--model", str(tmp_path / "pixels"), "sampling.guidance=1", setting]
    assert main([*words, "--dry-run", "--out", str(tmp_path / "out")]) == 2
    assert f"{setting.partition('=')[0]} is true, but the model has no" in capsys.readouterr().err


def test_a_model_without_weights_is_the_model_s_shape():
    bare, whole = load_meta_model("bundled"), load_model("bundled")
    for part in ("network", "pipeline.vae", "pipeline.text_encoder"):
        modules = [bare, whole]
        for name in part.split("."):
            modules = [getattr(module, name) for module in modules]
        shapes = [{name: weight.shape for name, weight in module.named_parameters()} for module in modules]
        assert shapes[0] == shapes[1]
    assert bare.latent_shape == whole.latent_shape
    assert all(weight.is_meta for weight in bare.network.parameters())


def test_dry_run_prints_the_plan_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "ddpo-compressibility", "--dry-run", "rounds=3"]) == 0
    shown = capsys.readouterr().out
    assert "rounds          3, with 12 updates in all" in shown
    assert "runs/ddpo-compressibility-1 (nothing has been written)" in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["model=nowhere"], "there is no model at nowhere"),
        (["prompts=nowhere.txt"], "nowhere.txt"),
        (["reward=nowhere"], "nowhere"),
        (["evaluation.rewards=nowhere"], "nowhere"),
        (["algorithm=draft"], "follows the reward's gradient"),
        (["tuning.targets=nowhere"], "tuning.targets"),
        (["sampling.height=33"], "sampling.height is 33"),
        (["trackers=nowhere"], "trackers has 'nowhere'"),
        (["prior_preservation.weight=1", "prior_preservation.source=nowhere"], "nowhere"),
        (["--out", "/proc/nowhere"], "cannot write"),
    ],
)
def test_dry_run_finds_mistakes(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "ddpo-compressibility", *argv, "--dry-run"]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_dry_run_under_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "ddpo-compressibility", "--dry-run"]) == 0
    assert not capsys.readouterr().out
    monkeypatch.setenv("RANK", "0")
    assert main(["train", "ddpo-compressibility", "--dry-run"]) == 0
    assert "processes       2 on" in capsys.readouterr().out
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert main(["train", "ddpo-compressibility", "--dry-run"]) == 2
    assert "5 processes do not divide" in capsys.readouterr().err
