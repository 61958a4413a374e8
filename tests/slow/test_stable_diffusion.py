"""Stable Diffusion 1.x at full size: its public configuration with random weights, through the command line."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from tiny import tokenizer

pytestmark = pytest.mark.slow

COUNTS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
"""Parameters of the published SD 1.x checkpoints."""


def stable_diffusion(path: Path) -> Path:
    """SD 1.x by its public configuration, random, saved in float16."""
    torch.manual_seed(0)
    tokens = tokenizer(77)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            max_position_embeddings=77, projection_dim=768, bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
        )
    )  # fmt: skip
    for name, module in {"unet": unet, "vae": vae, "text_encoder": text}.items():
        assert sum(p.numel() for p in module.parameters()) == COUNTS[name], name
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokens, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.to(dtype=torch.float16).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("sd") / "sd14")


@pytest.mark.parametrize("pixels", [64, 128])
def test_one_round_runs_at_full_size(folder, tmp_path, pixels, capsys):
    """The public code's LoRA preset with fewer, smaller and shorter samples; prints seconds and peak memory."""
    words = [
        "train", "ddpo-compressibility-sd14-lora", "--model", str(folder), "--out", str(tmp_path / "run"),
        f"sampling.height={pixels}", f"sampling.width={pixels}", "sampling.steps=5", "sampling.samples=4",
        "sampling.batch=4", "optimizer.updates=1",
        "optimizer.rows=4", "rounds=1", "evaluation.prompts=1", "evaluation.per_prompt=2",
    ]  # fmt: skip
    script = f"import sys; from tastemaker.cli.main import main; sys.exit(main({words!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    record = next(record for record in records if "round" in record)
    assert record["ratio_deviation/first"] < 1e-6
    assert record["grad_norm"] > 0
    with capsys.disabled():
        print(
            f"\nSD 1.x, {pixels} px, 4 rows: sampling {record['seconds/sample']:.1f} s, "
            f"training {record['seconds/train']:.1f} s, largest peak so far {peak:.1f} GB"
        )
