"""SDXL at full size on a CPU, with random weights in bfloat16: seconds and peak memory of a sample and a trained row.

    python benchmarks/sdxl_full_size.py [--pixels 128] [--steps 4]

The networks have the public configurations of stabilityai/stable-diffusion-xl-base-1.0 and its numbers of parameters.
One image is sampled with guidance, and one of its steps is trained by DDPO's loss with LoRA of rank 4: forward,
backward and an update of AdamW.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tastemaker.algorithms.base import Task
from tastemaker.diffusion.sampler import sample
from tastemaker.diffusion.sde import ddim
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.stable_diffusion_xl import SDXL
from tastemaker.models.tuning import Tuning
from tastemaker.types import Draw, all_rows

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny import tokenizer

COUNTS = {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}
"""Parameters of the published checkpoint."""
UNET = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048, "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


def drawn(network: nn.Module) -> Any:
    """A network from the meta device in bfloat16: norms as they begin, other weights drawn small."""
    network = network.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.uniform_(-0.02, 0.02)
            else:
                parameter.fill_(float(name.endswith("weight")))
    return network


def text_config(tokens: Any, width: int, layers: int, heads: int, act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, hidden_act=act,
        num_attention_heads=heads, max_position_embeddings=77, projection_dim=width if width > 1000 else 768,
        bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id,
    )  # fmt: skip


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """SDXL's pipeline with random weights."""
    torch.manual_seed(0)
    tokens = tokenizer(77)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
    torch.set_default_dtype(torch.bfloat16)
    text = CLIPTextModel(text_config(tokens, 768, 12, 12, "quick_gelu"))
    text_2 = CLIPTextModelWithProjection(text_config(tokens, 1280, 32, 20, "gelu"))
    torch.set_default_dtype(torch.float32)
    # diffusers' annotations say that these are tuples of one.
    options: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 1024,
        "scaling_factor": 0.13025,
    }  # fmt: skip
    vae = AutoencoderKL(**options)
    networks = {"unet": drawn(unet), "vae": vae, "text_encoder": text, "text_encoder_2": text_2}
    for name, network in networks.items():
        found = sum(parameter.numel() for parameter in network.parameters())
        assert found == COUNTS[name], (name, found)
    scheduler: Any = EulerDiscreteScheduler(  # not in the union of schedulers that the pipeline's annotation has
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    return StableDiffusionXLPipeline(
        **networks, tokenizer=tokens, tokenizer_2=tokenizer(77), scheduler=scheduler, add_watermarker=False
    )


def peak() -> float:
    """Of this process, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def spent(part: str, start: tuple[float, float]) -> dict[str, float]:
    """Seconds by the clock and of computing, which other programs do not lengthen, since `start`; the peak so far."""
    clock, computing = now()
    return {f"seconds/{part}": clock - start[0], f"cpu_seconds/{part}": computing - start[1], f"GB/{part}": peak()}


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def measure(pixels: int, steps: int) -> dict[str, float]:
    """Seconds and peak GB of sampling one image and training one row."""
    start = now()
    model = LatentUNet(SDXL, stable_diffusion_xl(), "bf16")
    model.resize(pixels, pixels)
    model.tune(Tuning(rank=4, gradient_checkpointing=True))
    found = {"pixels": pixels, "steps": steps} | spent("made", start)
    draw, sde = Draw(0, 1, ("a cat",), (0,), (0,)), ddim(model.process.grid(steps), 1.0)
    start = now()
    rollout = sample(model, model.encode(draw.prompts, 5.0), draw, sde, sde.stochastic())
    with torch.no_grad():
        image = model.decode(rollout.x0)
    assert image.shape == (1, 3, pixels, pixels)
    assert image.isfinite().all()
    found |= spent("sample", start)
    start = now()
    rollout = replace(rollout, reward=torch.zeros(1), advantage=torch.ones(1))
    row = all_rows(rollout).select(slice(0, 1)).transitions()
    trained = model.weights.trainable()
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-4)
    ratio = (Task(model, sde).log_prob(row) - row.logp).exp()
    (-ratio).sum().backward()
    gradients = [parameter.grad for parameter in trained.values() if parameter.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    optimizer.step()
    count = sum(parameter.numel() for parameter in trained.values())
    return found | spent("train", start) | {"ratio": ratio.item(), "grad_norm": norm, "trained": count}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    print(json.dumps(measure(args.pixels, args.steps)))
