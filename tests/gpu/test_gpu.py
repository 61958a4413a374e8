"""What a GPU changes: precisions, memory settings, compilation, sharding, resuming. Run with `pytest -m gpu`.

Skipped where there is no GPU. DEVICE=cpu in the environment runs them on the CPU, to show that they work.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tiny
import tiny_flow
from tastemaker.algorithms.base import Task
from tastemaker.cli.main import main
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sampler import sample
from tastemaker.diffusion.sde import make_sde
from tastemaker.models import wrap_pipeline
from tastemaker.models.memory import save_memory
from tastemaker.models.memory_settings import Memory
from tastemaker.models.tuning import Tuning
from tastemaker.types import Draw, all_rows

REHEARSAL = os.environ.get("DEVICE") == "cpu"
DEVICE = torch.device("cpu" if REHEARSAL else "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # what CUDA's libraries advise is no failure
    pytest.mark.skipif(not (REHEARSAL or torch.cuda.is_available()), reason="no GPU"),
]
PIPELINES = {"sd": tiny.pipeline, "xl": tiny.xl, "sd3": tiny_flow.sd3, "flux": tiny_flow.flux}
LAUNCHED = str(Path(__file__).parents[1] / "invariants/launched.py")
SHARDING = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}


@pytest.fixture(autouse=True)
def _whole_float32(monkeypatch: pytest.MonkeyPatch):
    """cuDNN's convolutions round float32 to 10 bits by default, each kernel in its own way."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def words(checkpoint: Path, out: Path, *more: str) -> list[str]:
    return [
        "train", "ddpo-compressibility", "--model", str(checkpoint), "--out", str(out), "--rounds", "2",
        "sampling.steps=4", "sampling.samples=16", "sampling.per_prompt=4", "sampling.batch=16", "optimizer.updates=2",
        "optimizer.rows=8", "optimizer.lr=1e-3", "optimizer.warmup=0", "evaluation.every=9", "evaluation.prompts=1",
        "evaluation.per_prompt=2", "evaluation.kl_images=0", "checkpoint.keep=9", *more,
    ]  # fmt: skip


def rounds(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "round" in line]


def trained(run: Path, number: int = 2) -> torch.Tensor:
    """All trained weights after a round, in one vector."""
    weights = load_file(run / f"checkpoints/step-{number:06}/weights.safetensors")
    return torch.cat([weights[name].flatten().double() for name in sorted(weights)])


def distance(one: torch.Tensor, two: torch.Tensor) -> float:
    return ((one - two).norm() / one.norm()).item()


def model(family: str, precision: str = "fp32", device: torch.device = DEVICE) -> Model:
    return wrap_pipeline(PIPELINES[family](), precision, device)


def asked(found: Model, count: int = 3) -> torch.Tensor:
    """The network's answer [count,*D] to the same noise, times and prompts on every device."""
    x = torch.randn(count, *found.latent_shape, generator=torch.Generator().manual_seed(0)).to(found.device)
    t = torch.tensor([500, 20, 900][:count], device=found.device)
    return found.predict(x, t, found.encode(["a cat", "a dog", "a cat"][:count], 1.0))


def difference(one: torch.Tensor, two: torch.Tensor) -> float:
    """Of tensors of any precision and device, in terms of the first one's size."""
    a, b = one.detach().double().cpu(), two.detach().double().cpu()
    return ((a - b).norm() / a.norm()).item()


# ---------------------------------------------------------------- the device itself


def test_the_model_is_on_the_device():
    found = model("sd")
    assert {parameter.device.type for parameter in found.network.parameters()} == {DEVICE.type}
    assert asked(found).device.type == DEVICE.type


@pytest.mark.parametrize("family", PIPELINES)
def test_answers_and_images_are_those_of_the_cpu(family):
    here, there = model(family), model(family, device=torch.device("cpu"))
    assert difference(asked(there), asked(here)) < 1e-4
    draw = Draw(0, 1, ("a cat", "a dog"), (0, 1), (0, 0))
    latents = []
    for one in (there, here):
        sde = make_sde(one, 4, 1.0)
        latents.append(sample(one, one.encode(draw.prompts, 5.0), draw, sde, sde.stochastic()).x0)
    # The noise is drawn by counters, the same on every device.
    assert difference(*latents) < 1e-3


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("precision", "bound"),
    [
        ("fp32", 1e-5), ("bf16", 1e-2),
        pytest.param(
            "fp16", 1e-2, marks=pytest.mark.skipif(REHEARSAL, reason="accelerate has no float16 training on a CPU")
        ),
    ],
)  # fmt: skip
def test_rounds_in_each_precision_begin_at_a_ratio_of_one(checkpoint, tmp_path, precision, bound):
    assert main(words(checkpoint, tmp_path / "run", "--precision", precision)) == 0
    found = rounds(tmp_path / "run")
    assert max(record["ratio_deviation/first"] for record in found) < bound
    assert all(record["grad_norm"] > 0 for record in found)
    assert distance(trained(tmp_path / "run", 0), trained(tmp_path / "run")) > 1e-3


@pytest.mark.parametrize("family", PIPELINES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_weights_half_and_adapters_whole(family, precision):
    whole, half = model(family), model(family, precision)
    half.tune(Tuning(rank=2))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    adapters = half.weights.trainable()
    assert {parameter.dtype for parameter in adapters.values()} == {torch.float32}
    others = [parameter for name, parameter in half.network.named_parameters() if name not in adapters]
    assert {parameter.dtype for parameter in others} == {dtype}
    answer = asked(half)
    assert answer.dtype == torch.float32
    # 8 bits of mantissa of bfloat16 are 4e-3, and 11 of float16 are 5e-4, through a few dozen layers.
    assert 0 < difference(asked(whole), answer) < 0.1
    answer.square().mean().backward()
    gradients = [parameter.grad for parameter in adapters.values() if parameter.grad is not None]
    assert any(gradient.abs().max() > 0 for gradient in gradients)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_ratios_are_one_whatever_the_micro_batch(rows):
    """A kernel is chosen by the size of a batch, so that training computes other last digits than sampling."""
    found = model("sd")
    found.tune(Tuning(rank=2))
    draw, sde = Draw(0, 1, ("a cat",) * 4, tuple(range(4)), (0,) * 4), make_sde(found, 4, 1.0)
    rollout = sample(found, found.encode(draw.prompts, 5.0), draw, sde, sde.stochastic())
    part = all_rows(replace(rollout, advantage=torch.ones(4, device=DEVICE))).select(slice(0, rows)).transitions()
    ratio = (Task(found, sde).log_prob(part) - part.logp).exp()
    assert ratio.requires_grad
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-5)


# ---------------------------------------------------------------- runs


def test_a_resumed_run_is_the_uninterrupted_one(checkpoint, tmp_path):
    assert main(words(checkpoint, tmp_path / "whole")) == 0
    assert main(words(checkpoint, tmp_path / "resumed", "--rounds", "1")) == 0
    assert main(["resume", str(tmp_path / "resumed"), "--rounds", "2"]) == 0
    one, two = trained(tmp_path / "whole"), trained(tmp_path / "resumed")
    # CUDA adds some gradients in no fixed order.
    assert distance(one, two) <= (0 if REHEARSAL else 1e-4)
    assert distance(trained(tmp_path / "whole", 1), one) > 1e-3


@pytest.mark.skipif(REHEARSAL, reason="takes many minutes of a CPU; the rehearsal compiles in another step")
def test_a_compiled_run_is_the_eager_one(checkpoint, tmp_path):
    assert main(words(checkpoint, tmp_path / "eager", "--rounds", "1")) == 0
    assert main(words(checkpoint, tmp_path / "compiled", "--rounds", "1", "speed.compile=true")) == 0
    one, two = (rounds(tmp_path / name)[0] for name in ("eager", "compiled"))
    assert two["reward/mean"] == pytest.approx(one["reward/mean"], rel=1e-3)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-2)
    assert two["ratio_deviation/first"] < 1e-4


def test_one_process_that_shards_is_one_that_does_not(checkpoint, tmp_path):
    """FSDP2, as `accelerate launch --use_fsdp --fsdp_version 2` sets it; on a CPU launched.py makes it shard."""
    assert main(words(checkpoint, tmp_path / "alone")) == 0
    line = [*(["--sharded"] if REHEARSAL else []), *words(checkpoint, tmp_path / "sharded")]
    environment = SHARDING | {"ACCELERATE_USE_CPU": str(REHEARSAL).lower()}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", LAUNCHED]
    done = subprocess.run([*launcher, *line], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert "this process holds 100% of its weights" in done.stdout
    one, two = (rounds(tmp_path / name) for name in ("alone", "sharded"))
    assert [record["reward/mean"] for record in two] == pytest.approx([r["reward/mean"] for r in one], rel=1e-3)
    assert distance(trained(tmp_path / "alone"), trained(tmp_path / "sharded")) < 1e-2
    assert distance(trained(tmp_path / "alone", 0), trained(tmp_path / "alone")) > 1e-2


def test_eight_bit_optimizer_states_train_and_resume(checkpoint, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs the extra eight-bit")
    full = ("tuning.mode=full", "optimizer.eight_bit=true", "--rounds")
    assert main(words(checkpoint, tmp_path / "run", *full, "1")) == 0
    assert main(["resume", str(tmp_path / "run"), "--rounds", "2"]) == 0
    states = load_file(tmp_path / "run/checkpoints/step-000002/optimizer.safetensors")
    assert torch.uint8 in {state.dtype for state in states.values()}
    assert distance(trained(tmp_path / "run", 1), trained(tmp_path / "run")) > 1e-4


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("family", PIPELINES)
def test_offloaded_parts_are_in_main_memory_and_change_nothing(family):
    plain, saving = model(family), model(family)
    save_memory(saving, Memory(offload=True))
    parts: list[nn.Module] = [part for name, part in saving.components.items() if name != "vae"]
    parts += saving.components["vae"].children()

    def places() -> set[str]:
        return {parameter.device.type for part in parts for parameter in part.parameters()}

    assert places() == {"cpu"}
    first = asked(plain)
    torch.testing.assert_close(asked(saving), first, rtol=0, atol=0)
    x = torch.randn(2, *plain.latent_shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with torch.no_grad():
        images = saving.decode(x)
        torch.testing.assert_close(images, plain.decode(x), rtol=0, atol=1e-6)
    assert images.device.type == DEVICE.type
    assert places() == {"cpu"}
    reached = x.clone().requires_grad_()
    saving.decode(reached).mean().backward()  # the decoder stays for the backward pass
    assert reached.grad is not None
    assert reached.grad.abs().max() > 0


@pytest.mark.parametrize("family", ["sd", "sd3"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_learn_on_quantized_weights(family, kind, precision):
    pytest.importorskip("bitsandbytes", reason="needs the extra eight-bit")
    plain = model(family, precision)
    found = wrap_pipeline(PIPELINES[family](), precision, DEVICE, "cpu")  # as a run loads it: quantized, then moved
    found.tune(Tuning(rank=2, base_weights=kind))
    found.network.to(DEVICE)
    stored = {parameter.dtype for parameter in found.network.parameters()}
    assert {"nf4": torch.uint8, "int8": torch.int8}[kind] in stored
    before = asked(found)
    assert 0 < difference(asked(plain), before) < 0.5
    optimizer = torch.optim.AdamW(found.weights.trainable().values(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        asked(found).square().mean().backward()
        optimizer.step()
    assert asked(found).square().mean() < before.square().mean()
    with found.weights.reference():
        assert difference(before, asked(found)) < 1e-3


def test_checkpointing_changes_memory_and_no_gradient():
    gradients, peaks = [], []
    for checkpointing in (False, True):
        found = model("sd3")
        found.tune(Tuning(rank=2, gradient_checkpointing=checkpointing))
        found.network.train()
        cuda = DEVICE.type == "cuda"
        before = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        asked(found).square().mean().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before if cuda else 0)
        grads = {name: parameter.grad for name, parameter in found.weights.trainable().items()}
        gradients.append({name: copy.deepcopy(grad) for name, grad in grads.items() if grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7)
    assert peaks[1] <= peaks[0]
