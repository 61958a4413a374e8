"""DDPO (Black et al. 2023, arXiv:2305.13301) in one file: a plain training loop on a diffusers pipeline.

python examples/ddpo_single_file.py [--model FOLDER] [--rounds 4] [--out FOLDER]

It trains the same weights as `tastemaker train` with these settings (a test compares them), without evaluations,
checkpoints, metrics, several processes and everything else. Shapes: B images, W trained steps, N rows (one image at one
step), *D a latent.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from tastemaker.algorithms.advantage import PromptStatistics
from tastemaker.data.prompt_set import PromptSet
from tastemaker.diffusion.losses import clipped_surrogate, gaussian_logp
from tastemaker.diffusion.sampler import LocalSampler, batches
from tastemaker.diffusion.sde import Sde, ddim
from tastemaker.evaluation.evaluate import generate
from tastemaker.models.bundled import bundled_pipeline
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.stable_diffusion import SD
from tastemaker.models.tuning import Tuning
from tastemaker.rewards.base import RewardFunction, score, wrap
from tastemaker.rewards.jpeg import jpeg_compressibility
from tastemaker.training.draws import draw_round
from tastemaker.types import Rollout

PROMPTS = ("a red circle", "a blue square", "a green star", "a yellow heart")


@dataclass(frozen=True)
class Settings:
    """By the names of `tastemaker train`, without their sections."""

    seed: int = 0
    rounds: int = 4
    steps: int = 20
    eta: float = 1.0
    guidance: float = 5.0
    samples: int = 64
    per_prompt: int = 16
    batch: int = 64
    updates: int = 4
    rows: int = 64
    lr: float = 3e-3
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    clip: float = 1e-2
    """Of the ratio of mean (per-element) probabilities."""
    buffer: int = 32
    min_count: int = 16
    advantage_clip: float = 5.0
    rank: int = 4


def train(pipeline: StableDiffusionPipeline, prompts: Sequence[str], reward: RewardFunction, s: Settings) -> LatentUNet:
    """The model with a trained adapter; the pipeline's unet is trained in place."""
    model = LatentUNet(SD, pipeline, device="cuda" if torch.cuda.is_available() else "cpu")
    model.tune(Tuning(rank=s.rank), s.seed)
    sde = ddim(model.process.grid(s.steps, model.latent_shape), s.eta)
    parameters = list(model.weights.trainable().values())
    optimizer = torch.optim.AdamW(parameters, lr=s.lr, weight_decay=s.weight_decay)
    statistics = PromptStatistics(s.buffer, s.min_count)
    listed = PromptSet(tuple(prompts), (1.0,) * len(prompts))

    for number in range(1, s.rounds + 1):
        # 1. Sample images of drawn prompts, and keep each step's latents and log-probability.
        draw = draw_round(listed, s.seed, number, s.samples, s.per_prompt)
        made = generate(
            model, LocalSampler(model, sde), draw, guidance=s.guidance, batch=s.batch, keep=sde.stochastic()
        )
        # 2. Score them, and compare each reward with the earlier ones of its prompt.
        rewards = score(wrap(reward), made.images, draw.prompts).total
        advantage = statistics.advantages(draw.prompts, rewards).clamp(-s.advantage_clip, s.advantage_clip)
        # 3. Policy-gradient updates, each on its share of the images with all their steps.
        size = s.samples // s.updates
        for start in range(0, s.samples, size):
            update(model, made.rollout, advantage.to(model.device), range(start, start + size), sde, s)
            torch.nn.utils.clip_grad_norm_(parameters, s.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        print(f"round {number}: mean reward {rewards.mean():.3f}")
    return model


def update(model: LatentUNet, rollout: Rollout, advantage: Tensor, images: range, sde: Sde, s: Settings) -> None:
    """Adds up the gradient of the mean clipped loss over the images' steps, in micro-batches of `rows`."""
    kept = rollout.kept
    image = torch.tensor(list(images), device=rollout.device).repeat_interleave(kept)
    place = torch.arange(kept, device=image.device).repeat(len(images))
    for part in batches(len(image), s.rows):
        i, w = image[part.start : part.stop], place[part.start : part.stop]
        logp = log_prob(model, rollout, i, w, sde)
        ratio = (logp - rollout.logp[i, w]).exp()
        loss = clipped_surrogate(ratio, advantage[i], s.clip)
        (loss.sum() / len(image)).backward()


def log_prob(model: LatentUNet, rollout: Rollout, i: Tensor, w: Tensor, sde: Sde) -> Tensor:
    """Log-probability [N] of the sampled step w [N] of image i [N] under the weights as they are now.

    The policy is the Gaussian of a DDIM step with noise; its mean depends on the network's guided estimate of x_0.
    """
    x, x_next, step = rollout.latents[i, w], rollout.latents[i, w + 1], rollout.steps[w]
    x0 = model.denoise(x, sde.grid.times.to(x.device)[step], rollout.cond.select(i))
    mean, std = sde.step(x.to(x0.dtype), x0, step)
    return gaussian_logp(x_next, mean, std, "mean")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(bundled_pipeline()), help="folder or hub name of a Stable Diffusion")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("ddpo-adapter"), help="folder of the adapter")
    args = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(args.model)
    train(pipeline, PROMPTS, jpeg_compressibility, Settings(rounds=args.rounds)).weights.save(args.out)
    print(f"adapter: {args.out}")


if __name__ == "__main__":
    main()
