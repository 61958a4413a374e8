"""Makes the bundled model again from nothing: drawings, VAE, text encoder and U-Net, judge, export.

    python scripts/bundled/build.py all --work build/bundled

Each stage continues from its last checkpoint in the work folder, so an interrupted build is started again
with the same command. Cost on 2 CPU cores: see docs/results/bundled-model.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tastemaker.drawings import render, sample_scene
from tastemaker.drawings.scene import COLOURS, KINDS, NUMBERS, PATTERNS, RELATIONS, request_for

SIZE = 32
CAPTIONS_PER_DRAWING = 3
MAX_TOKENS = 24
DRAWINGS = 100_000
VAE_STEPS, VAE_BATCH, VAE_LR = 10_000, 16, 2e-3
UNET_STEPS, UNET_BATCH, UNET_LR = 6_300, 64, 1e-3
CAPTION_DROPOUT, MIN_SNR, EMA_DECAY = 0.12, 5.0, 0.999


# ---------------------------------------------------------------- drawings


def _draw(seed: int) -> tuple[np.ndarray, list[str]]:
    rng = random.Random(seed)
    scene, request = sample_scene(rng)
    image = np.asarray(render(scene, SIZE, rng))
    captions = [request.caption()] + [request_for(rng, scene).caption() for _ in range(CAPTIONS_PER_DRAWING - 1)]
    return image, captions


def draw(work: Path) -> None:
    """100,000 drawings with three captions each."""
    if (work / "drawings.npy").exists():
        return
    with Pool() as pool:
        drawn = pool.map(_draw, range(DRAWINGS), chunksize=500)
    np.save(work / "drawings.npy", np.stack([image for image, _ in drawn]))
    (work / "captions.json").write_text(json.dumps([captions for _, captions in drawn]))


def load_images(work: Path) -> Tensor:
    """Images in [-1, 1], uint8 until used: [N,3,32,32]."""
    return torch.from_numpy(np.load(work / "drawings.npy")).permute(0, 3, 1, 2)


def to_unit(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


# ---------------------------------------------------------------- checkpoints


class Stage:
    """Modules, optimizer and step count of one training stage, saved every few hundred steps."""

    def __init__(self, path: Path, steps: int, lr: float, **modules: torch.nn.Module) -> None:
        self.path, self.steps, self.modules = path, steps, modules
        self.parameters = [p for name, m in modules.items() if not name.startswith("ema") for p in m.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=1e-2, fused=True)
        self.lr, self.step, self.started, self.losses = lr, 0, time.time(), []
        if path.exists():
            state = torch.load(path, weights_only=True)
            for name, module in modules.items():
                module.load_state_dict(state[name])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
        self.first = self.step

    def update(self, loss: Tensor) -> None:
        warmup = min(1.0, (self.step + 1) / 200)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * warmup * (0.5 + 0.5 * math.cos(math.pi * self.step / self.steps)) + 1e-6
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())
        self.step += 1
        if self.step % 100 == 0:
            speed = (time.time() - self.started) / (self.step - self.first)
            print(
                f"{self.path.stem} {self.step}/{self.steps} loss {np.mean(self.losses[-100:]):.4f} "
                f"{(self.steps - self.step) * speed / 60:.1f} min left",
                flush=True,
            )
        if self.step % 500 == 0 or self.step == self.steps:
            self.save()

    def save(self) -> None:
        state = {name: module.state_dict() for name, module in self.modules.items()}
        torch.save(state | {"optimizer": self.optimizer.state_dict(), "step": self.step}, self.path)


# ---------------------------------------------------------------- VAE


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=SIZE, layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
    )  # fmt: skip


def train_vae(work: Path) -> None:
    """L1 + 2 MSE + half the L1 of the image gradients + a light KL; prints the PSNR on unseen drawings."""
    torch.manual_seed(0)
    images, vae = load_images(work), new_vae()
    stage = Stage(work / "vae.pt", VAE_STEPS, VAE_LR, vae=vae)
    while stage.step < stage.steps:
        torch.manual_seed(stage.step)
        x = to_unit(images[torch.randint(0, len(images) - 1000, (VAE_BATCH,))])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        y = y.float()
        slopes = sum((x.diff(dim=d) - y.diff(dim=d)).abs().mean() for d in (2, 3))
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        stage.update((x - y).abs().mean() + 2 * (x - y).square().mean() + 0.5 * slopes + 2e-4 * kl)
        if stage.step % 1000 == 0:
            print(f"vae PSNR on held-out drawings: {psnr(vae, images[-1000:]):.2f} dB", flush=True)


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor) -> float:
    x = to_unit(images)
    y = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1) for part in x.split(100)])
    return (-10 * ((x - y) / 2).square().mean(dim=(1, 2, 3)).log10()).mean().item()


# ---------------------------------------------------------------- text and U-Net


def new_tokenizer(work: Path) -> CLIPTokenizer:
    """A byte-pair tokenizer of CLIP's kind: letters, digits, punctuation, and the words of the captions."""
    words = {*KINDS, *COLOURS, *NUMBERS.values(), *PATTERNS, "small", "big", "solid", "background", "a", "an", "and"}
    words |= {word for relation in RELATIONS for word in relation.split()}
    words |= {kind + "s" for kind in KINDS if kind != "fish"}
    characters = list("abcdefghijklmnopqrstuvwxyz0123456789'.,!?-:;()\"&/")
    vocabulary = characters + [character + "</w>" for character in characters]
    merges = []
    for word in sorted(words):
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[-2], pieces[-1])
            if pair not in merges:
                merges.append(pair)
                vocabulary.append("".join(pair))
            pieces = [*pieces[:-2], "".join(pair)]
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)}, merges=merges, model_max_length=MAX_TOKENS
    )
    for word in words:
        if len(tokenizer(word).input_ids) != 3:
            raise SystemExit(f"the tokenizer splits {word!r}: {tokenizer.tokenize(word)}")
    return tokenizer


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, projection_dim=128, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=MAX_TOKENS, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=128, attention_head_dim=4, norm_num_groups=16,
    )  # fmt: skip


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule, to the letter."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
        timestep_spacing="leading",
    )  # fmt: skip


@torch.no_grad()
def encode_images(work: Path) -> tuple[Tensor, float]:
    """Latent means and deviations of all drawings, [N,2,4,8,8], and the factor that makes them unit variance."""
    vae = new_vae()
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True)["vae"])
    vae.eval()
    moments = []
    for part in load_images(work).split(250):
        posterior = vae.encode(to_unit(part)).latent_dist
        moments.append(torch.stack([posterior.mean, posterior.std], dim=1))
    latents = torch.cat(moments)
    return latents, 1 / latents[:, 0].std().item()


def train_unet(work: Path) -> None:
    """Noise prediction with min-SNR weights and dropped captions; U-Net and text encoder together, with EMA."""
    torch.manual_seed(1)
    tokenizer, scheduler = new_tokenizer(work), new_scheduler()
    if not (work / "latents.pt").exists():
        torch.save(encode_images(work), work / "latents.pt")
    latents, factor = torch.load(work / "latents.pt", weights_only=True)
    captions = json.loads((work / "captions.json").read_text())
    flat = [caption for group in captions for caption in group] + [""]
    ids = tokenizer(flat, padding="max_length", truncation=True, return_tensors="pt").input_ids
    empty, ids = ids[-1], ids[:-1].view(len(captions), CAPTIONS_PER_DRAWING, MAX_TOKENS)
    unet = new_unet().to(memory_format=torch.channels_last)
    text = new_text_encoder(tokenizer)
    ema = torch.nn.ModuleDict({"unet": new_unet(), "text": new_text_encoder(tokenizer)}).requires_grad_(False)
    ema["unet"].load_state_dict(unet.state_dict())
    ema["text"].load_state_dict(text.state_dict())
    stage = Stage(work / "unet.pt", UNET_STEPS, UNET_LR, unet=unet, text=text, ema=ema)
    live = [*unet.parameters(), *text.parameters()]
    average = [*ema["unet"].parameters(), *ema["text"].parameters()]
    a = scheduler.alphas_cumprod
    weight = torch.clamp(MIN_SNR * (1 - a) / a, max=1.0)
    while stage.step < stage.steps:
        torch.manual_seed(10_000 + stage.step)
        rows = torch.randint(0, len(latents), (UNET_BATCH,))
        mean, std = latents[rows].unbind(1)
        x0 = (mean + std * torch.randn_like(mean)) * factor
        t, noise = torch.randint(0, 1000, (UNET_BATCH,)), torch.randn_like(x0)
        chosen = ids[rows, torch.randint(0, CAPTIONS_PER_DRAWING, (UNET_BATCH,))]
        chosen = torch.where(torch.rand(UNET_BATCH, 1) < CAPTION_DROPOUT, empty, chosen)
        xt = scheduler.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
        predicted = unet(xt, t, text(chosen).last_hidden_state).sample
        stage.update((weight[t] * (predicted - noise).square().mean(dim=(1, 2, 3))).mean())
        decay = min(EMA_DECAY, (stage.step + 1) / (stage.step + 10))
        torch._foreach_lerp_(average, live, 1 - decay)
        if stage.step % 1000 == 0:
            export(work)
            preview(work, stage.step)


# ---------------------------------------------------------------- export


def export(work: Path) -> None:
    """The averaged weights as a diffusers pipeline in float16, under work/pipeline."""
    tokenizer = new_tokenizer(work)
    vae, unet, text = new_vae(), new_unet(), new_text_encoder(tokenizer)
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True)["vae"])
    vae.register_to_config(scaling_factor=torch.load(work / "latents.pt", weights_only=True)[1])
    state = torch.load(work / "unet.pt", weights_only=True)["ema"]
    unet.load_state_dict({k.removeprefix("unet."): v for k, v in state.items() if k.startswith("unet.")})
    text.load_state_dict({k.removeprefix("text."): v for k, v in state.items() if k.startswith("text.")})
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=new_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    folder = work / "pipeline"
    pipeline.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
    vocabulary, merges = tokenizer.get_vocab(), json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    (folder / "tokenizer/vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")


PREVIEW = [
    "a red star", "a blue circle", "a yellow fish on a blue background", "a green house", "a purple heart",
    "a white square on a striped red background", "a striped orange triangle", "a black tree", "a big green star",
    "a small red house on a white background", "two red hearts", "three orange fish", "four blue squares",
    "four yellow stars on a black background", "a red star on the left of a blue circle",
    "a green tree above a yellow house", "a purple fish below a white heart on a green background",
    "a black triangle on the right of an orange star",
]  # fmt: skip


def preview(work: Path, step: int, each: int = 8) -> None:
    """A grid of images, a row a prompt, for the eye."""
    pipeline = StableDiffusionPipeline.from_pretrained(work / "pipeline", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [prompt for prompt in PREVIEW for _ in range(each)]
    images = pipeline(
        prompts, num_inference_steps=20, guidance_scale=5.0, eta=1.0, height=SIZE, width=SIZE,
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    sheet(images, each).save(work / f"preview-{step:05d}.png")


def sheet(images: list[Image.Image], each: int) -> Image.Image:
    """Two prompts a row, `each` images a prompt, twice as large."""
    rows = math.ceil(len(images) / (2 * each))
    canvas = Image.new("RGB", (each * 2 * 66, rows * 66), "grey")
    for index, image in enumerate(images):
        row, column = divmod(index, each)
        x, y = column + (row % 2) * each, row // 2
        canvas.paste(image.resize((64, 64), Image.Resampling.NEAREST), (x * 66, y * 66))
    return canvas


STAGES = {"draw": draw, "vae": train_vae, "unet": train_unet, "export": export}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--work", type=Path, default=Path("build/bundled"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name, stage in STAGES.items():
        if arguments.stage in (name, "all"):
            started = time.time()
            stage(arguments.work)
            print(f"{name} took {(time.time() - started) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
