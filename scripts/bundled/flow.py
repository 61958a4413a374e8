"""Trains the bundled flow transformer (Stable Diffusion 3's architecture) on the bundled drawings.

    python scripts/bundled/build.py draw --work build/bundled
    python scripts/bundled/flow.py all --work build/bundled [--until HH:MM] [--steps N]

The VAE and the text encoder are those of `tastemaker/assets/bundled`, frozen: the latents and the states of all
captions are computed once. Each stage continues where it stopped, so an interrupted training is started again with
the same command. What it cost and what it reached: docs/results/bundled-model.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from build import CAPTIONS_PER_DRAWING, PREVIEW, SIZE, load_images, sheet, to_unit
from tastemaker.models.bundled import bundled_pipeline
from tastemaker.models.zero_tokens import install
from training import Training

DRAWINGS = 40_000
STEPS, COOL_STEPS, BATCH, LR, MUON_LR = 5_000, 1_000, 64, 2e-3, 2e-2
CAPTION_DROPOUT, EMA_DECAY = 0.12, 0.998
HEADS, HEAD_WIDTH, LAYERS = 3, 32, 6
ZERO_TOKENS = 256
"""What StableDiffusion3Pipeline appends to the prompt's tokens where there is no T5, unless told otherwise."""


# ---------------------------------------------------------------- the frozen parts


def new_vae() -> AutoencoderKL:
    """The bundled VAE, with the shift that StableDiffusion3Pipeline asks for."""
    vae = AutoencoderKL.from_pretrained(bundled_pipeline() / "vae", dtype=torch.float32).eval()
    vae.register_to_config(shift_factor=0.0)
    return vae.requires_grad_(False)


def new_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(bundled_pipeline() / "tokenizer")


def new_text_encoders() -> list[CLIPTextModelWithProjection]:
    """The bundled text encoder in full, and its first layer alone; both project with the identity.

    The pipeline reads the states before the last layer: those after two layers of context, and the embeddings.
    """
    source = CLIPTextModel.from_pretrained(bundled_pipeline() / "text_encoder", dtype=torch.float32)
    weights = {name.removeprefix("text_model."): value for name, value in source.state_dict().items()}
    encoders = []
    for layers in (source.config.num_hidden_layers, 1):
        config = CLIPTextConfig.from_dict(source.config.to_dict() | {"num_hidden_layers": layers})
        encoder = CLIPTextModelWithProjection(config).eval().requires_grad_(False)
        kept = {name: value for name, value in weights.items() if not _above(name, layers)}
        encoder.text_model.load_state_dict(kept)
        torch.nn.init.eye_(encoder.text_projection.weight)
        encoders.append(encoder)
    return encoders


def _above(name: str, layers: int) -> bool:
    """Whether a weight belongs to layer `layers` or a later one."""
    parts = name.split(".")
    return "layers" in parts and int(parts[parts.index("layers") + 1]) >= layers


def encode(work: Path) -> None:
    """Latent means and deviations [N,2,4,8,8] of the first drawings, and token ids of their captions, in float16."""
    if (work / "flow-latents.pt").exists():
        return
    vae, moments = new_vae(), []
    with torch.no_grad():
        for part in load_images(work)[:DRAWINGS].split(250):
            posterior = vae.encode(to_unit(part)).latent_dist
            moments.append(torch.stack([posterior.mean, posterior.std], dim=1).half())
            if len(moments) % 20 == 0:
                print(f"encoded {len(moments) * 250}", flush=True)
    torch.save(torch.cat(moments), work / "flow-latents.pt")


def encode_captions(work: Path) -> None:
    """States of all captions that differ, and where each drawing's captions stand among them; row 0 is empty."""
    if (work / "flow-captions.pt").exists():
        return
    groups = json.loads((work / "captions.json").read_text())[:DRAWINGS]
    places: dict[str, int] = {"": 0}
    rows = [[places.setdefault(caption, len(places)) for caption in group] for group in groups]
    ids = new_tokenizer()(list(places), padding="max_length", truncation=True, return_tensors="pt").input_ids
    encoders, states, pooled = new_text_encoders(), [], []
    with torch.no_grad():
        for part in ids.split(256):
            seen = [encoder(part, output_hidden_states=True) for encoder in encoders]
            states.append(torch.cat([one.hidden_states[-2] for one in seen], dim=-1).half())
            pooled.append(torch.cat([one.text_embeds for one in seen], dim=-1))
    print(f"{len(places)} captions", flush=True)
    torch.save(
        {"rows": torch.tensor(rows), "states": torch.cat(states), "pooled": torch.cat(pooled)},
        work / "flow-captions.pt",
    )


# ---------------------------------------------------------------- the transformer


def new_transformer() -> SD3Transformer2DModel:
    """Stable Diffusion 3.5's blocks on 8x8 latents with patches of one; every block starts as the identity."""
    torch.manual_seed(3)
    width = HEADS * HEAD_WIDTH
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=LAYERS, attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS, joint_attention_dim=256, caption_projection_dim=width, pooled_projection_dim=256,
        pos_embed_max_size=16, qk_norm="rms_norm",
    )  # fmt: skip
    for name, parameter in network.named_parameters():
        if ".norm1" in name or name.startswith(("norm_out", "proj_out")):
            torch.nn.init.zeros_(parameter)
    return network


def _whiten(layer: torch.nn.Linear, states: Tensor) -> None:
    """Makes a layer begin as if its inputs had mean 0 and variance 1, which the frozen encoders' are far from."""
    std, mean = torch.std_mean(states, dim=0)
    with torch.no_grad():
        layer.weight /= std + 1e-4
        layer.bias -= layer.weight @ mean


def optimizers(network: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of attention and feed-forward layers, AdamW for everything else."""
    matrices = {
        name: p
        for name, p in network.named_parameters()
        if name.startswith("transformer_blocks") and p.ndim == 2 and "norm1" not in name
    }
    rest = [p for name, p in network.named_parameters() if name not in matrices]
    return [
        torch.optim.Muon(list(matrices.values()), lr=MUON_LR, weight_decay=1e-2),
        torch.optim.AdamW(rest, lr=LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def training(work: Path, path: Path) -> tuple[Training, Callable[[int], Tensor]]:
    """Rectified flow with logit-normal times (Stable Diffusion 3, Sections 3 and 3.1) and dropped captions."""
    network = new_transformer()
    install(network)
    captions = torch.load(work / "flow-captions.pt", weights_only=True, mmap=True)
    _whiten(network.context_embedder, captions["states"][:5000].float().flatten(0, 1))
    factor = new_vae().config["scaling_factor"]
    latents = torch.load(work / "flow-latents.pt", weights_only=True, mmap=True)
    zero = torch.zeros(BATCH, 1, 256)

    def loss(step: int) -> Tensor:
        rows = torch.randint(0, len(latents), (BATCH,))
        mean, std = latents[rows].float().unbind(1)
        x0 = (mean + std * torch.randn_like(mean)) * factor
        place = captions["rows"][rows, torch.randint(0, CAPTIONS_PER_DRAWING, (BATCH,))]
        place = torch.where(torch.rand(BATCH) < CAPTION_DROPOUT, 0, place)
        states, pooled = captions["states"][place].float(), captions["pooled"][place]
        repeats = ZERO_TOKENS if step % 2 else 1
        if step % 2:
            states = torch.cat([states, zero], dim=1)
        sigma, noise = torch.randn(BATCH).sigmoid(), torch.randn_like(x0)
        s = sigma[:, None, None, None]
        velocity = network(
            (1 - s) * x0 + s * noise, states, pooled, 1000 * sigma, joint_attention_kwargs={"repeats": repeats},
            return_dict=False,
        )[0]  # fmt: skip
        return (velocity - (noise - x0)).square().mean()

    return Training(path, network, optimizers(network), EMA_DECAY, every=25), loss


def train(work: Path, until: str | None) -> None:
    """At a constant rate to step STEPS, or until a time of day."""
    run, loss = training(work, work / "flow.pt")
    run.run(loss, STEPS, until)


def cool(work: Path, steps: int) -> None:
    """From where training stands, over `steps` further steps to a rate of zero."""
    path = work / "flow-cooled.pt"
    if not path.exists():
        shutil.copyfile(work / "flow.pt", path)
    run, loss = training(work, path)
    run.run(loss, STEPS, cool=steps)


def export(work: Path, path: Path) -> Path:
    """The averaged weights with the frozen parts as a StableDiffusion3Pipeline in float16, under work/flow-pipeline."""
    network = new_transformer()
    network.load_state_dict(torch.load(path, weights_only=True)["average"])
    first, second = new_text_encoders()
    pipeline = StableDiffusion3Pipeline(
        transformer=network, scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0),
        vae=new_vae(), text_encoder=first, tokenizer=new_tokenizer(), text_encoder_2=second,
        tokenizer_2=new_tokenizer(), text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    folder = work / "flow-pipeline"
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
    for name in ("tokenizer", "tokenizer_2"):
        for file in ("vocab.json", "merges.txt"):
            shutil.copyfile(bundled_pipeline() / "tokenizer" / file, folder / name / file)
    return folder


def preview(folder: Path, out: Path, each: int = 4) -> None:
    """A grid of images by diffusers' own pipeline, a prompt after the other, for the eye."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    prompts = [prompt for prompt in PREVIEW for _ in range(each)]
    images = pipeline(
        prompts, num_inference_steps=20, guidance_scale=5.0, height=SIZE, width=SIZE, max_sequence_length=0,
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    sheet(images, each).save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["encode", "train", "cool", "export", "all"])
    parser.add_argument("--work", type=Path, default=Path("build/bundled"))
    parser.add_argument("--until", help="time of day, HH:MM, at which to stop training")
    parser.add_argument("--cool-steps", type=int, default=COOL_STEPS)
    arguments = parser.parse_args()
    work, stage = arguments.work, arguments.stage
    if stage in ("encode", "train", "all"):
        encode(work)
        encode_captions(work)
    if stage in ("train", "all"):
        train(work, arguments.until)
    if stage in ("cool", "all"):
        cool(work, arguments.cool_steps)
    if stage in ("export", "all"):
        cooled = work / "flow-cooled.pt"
        path = cooled if cooled.exists() else work / "flow.pt"
        step = torch.load(path, weights_only=True)["step"]
        preview(export(work, path), work / f"flow-{step:05d}.png")


if __name__ == "__main__":
    main()
