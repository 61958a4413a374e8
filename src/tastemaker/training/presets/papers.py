"""The papers' own settings, besides DDPO's (presets/ddpo.py).

Where a paper's reward or base model is not part of this version the preset names none, and asks for one.
"""

from __future__ import annotations

from dataclasses import replace

from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.dpo import DPO
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.rwr import RWR
from tastemaker.models.tuning import Tuning
from tastemaker.selection import BestWorst, NonZero
from tastemaker.training.config import Advantage, Checkpoints, Config, Optimizer, Sampling
from tastemaker.training.presets.ddpo import PAPER, with_reward
from tastemaker.training.presets.preset import Preset
from tastemaker.windows import Backward

SD14, SD15 = "CompVis/stable-diffusion-v1-4", "stable-diffusion-v1-5/stable-diffusion-v1-5"

RWR_PAPER = replace(
    PAPER,
    rounds=10,
    algorithm=RWR(),
    advantage=Advantage(normalise="softmax", beta=0.2),
    sampling=replace(PAPER.sampling, samples=10240, per_prompt=32),
    optimizer=replace(PAPER.optimizer, updates=80, inner_epochs=5),
    checkpoint=Checkpoints(),
)

B2_BASE = Config(
    model=SD14,
    reward="",
    prompts="b2-template1-train",
    rounds=100,
    algorithm=DDPO(clip=1e-4),
    advantage=Advantage(normalise="windowed", history=8, min_count=2),
    sampling=Sampling(steps=20, eta=1.0, guidance=5.0, samples=256, per_prompt=1, batch=8),
    optimizer=Optimizer(lr=1e-4, weight_decay=1e-4, updates=1, rows=8),
    tuning=Tuning(mode="lora", rank=4),
)

B2 = replace(
    B2_BASE,
    rounds=33,
    sampling=replace(B2_BASE.sampling, samples=768, per_prompt=3, branches=3, batch=24),
    optimizer=replace(B2_BASE.optimizer, updates=8, inner_epochs=2),
    window=Backward(initial=14, rounds=33),
    selection=BestWorst(0.5),
)

DPOK_CODE = Config(
    model=SD15,
    reward="",
    prompts="dpok-test",
    rounds=2000,
    algorithm=DPOK(clip=1e-4, clamp="direct", reward_weight=10.0, kl=0.01, divergence="noise", value="mlp"),
    advantage=Advantage(normalise="none", clip=None),
    sampling=Sampling(steps=50, eta=1.0, guidance=7.5, samples=10, per_prompt=1, batch=10),
    optimizer=Optimizer(
        lr=1e-5, weight_decay=0.0, clip_norm=0.1, updates=5, minibatch="states", timestep_fraction=0.48, rows=4
    ),
    tuning=Tuning(mode="lora", rank=4, gradient_checkpointing=True),
    checkpoint=Checkpoints(every=10),
)

D3PO = Config(
    model=SD15,
    reward="",
    prompts="ddpo-animals",
    rounds=400,
    algorithm=DPO(beta=0.1, clip=0.1),
    sampling=Sampling(steps=20, eta=1.0, guidance=5.0, samples=64, per_prompt=2, branches=2, batch=8),
    optimizer=Optimizer(lr=3e-5, updates=1, rows=8),
    tuning=Tuning(mode="lora", rank=4),
)


def _thesis(
    steps: int,
    epochs: int,
    updates: int,
    states: int,
    lr: float,
    *,
    kl: float,
    warmup: int = 8192,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    reward: str = "",
) -> Config:
    """Columns 1 to 4 of Table 6.2: pixel-space models, fully trained in float32, 32 environments."""
    return Config(
        model="",
        prompts="",
        reward=reward,
        rounds=epochs,
        algorithm=PPO(clip=0.2, value_clip=0.2, value_weight=0.5, value_lr=1e-5, value_warmup=1024, kl=kl),
        advantage=Advantage(normalise="base", clip=None),
        sampling=Sampling(
            steps=steps, eta=1.0, guidance=1.0, samples=32, per_prompt=1, batch=32, log_prob="sum"
        ),
        optimizer=Optimizer(
            lr=lr, warmup=warmup, eps=eps, weight_decay=weight_decay, clip_norm=0.5, updates=updates,
            minibatch="states", rows=states,
        ),
        tuning=Tuning(mode="full"),
        checkpoint=Checkpoints(every=10),
    )  # fmt: skip


def _thesis_sd(
    steps: int, epochs: int, updates: int, states: int, lr: float, warmups: tuple[int, int], prompts: str
) -> Config:
    """Columns 6 and 7 of Table 6.2: Stable Diffusion 1.5 on ten GPUs, 80 environments."""
    return Config(
        model=SD15,
        prompts=prompts,
        reward="",
        rounds=epochs,
        algorithm=PPO(clip=0.2, value_weight=0.1, value_lr=1e-6, value_warmup=warmups[1], kl=0.0),
        advantage=Advantage(normalise="base", clip=None),
        sampling=Sampling(steps=steps, eta=1.0, guidance=7.5, samples=80, per_prompt=1, batch=8, log_prob="sum"),
        optimizer=Optimizer(
            lr=lr, warmup=warmups[0], weight_decay=0.01, clip_norm=1.0, updates=updates, minibatch="states",
            rows=states,
        ),
        tuning=Tuning(mode="full", gradient_checkpointing=True),
        precision="fp16",
        checkpoint=Checkpoints(every=100),
    )  # fmt: skip


_CLIP = "clip-score:laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_RWR_SOURCE = "DDPO paper A.2, A.3, A.6 and its JAX code; per-prompt weights as in the paper (methods.md §3)"
_B2_SOURCE = "B2-DiffuRL Table 6; initial interval 14, history 8 and two passes from its code (methods.md §5.7)"
_THESIS = "thesis Table 6.2, column {} (methods.md §6.5)"

_CONFIGS: dict[str, tuple[Config, str, str]] = {
    **{
        f"rwr-{task}-sd14": (
            with_reward(RWR_PAPER, f"jpeg-{task}"), "Stable Diffusion 1.4, reward-weighted regression", _RWR_SOURCE
        )
        for task in ("compressibility", "incompressibility")
    },
    **{
        f"rwr-sparse-{task}-sd14": (
            replace(
                with_reward(RWR_PAPER, f"jpeg-{task}"),
                advantage=Advantage(normalise="percentile", percentile=0.9),
                selection=NonZero(),
                optimizer=replace(RWR_PAPER.optimizer, updates=8, inner_epochs=50),
            ),
            "Stable Diffusion 1.4, regression on the best tenth", _RWR_SOURCE,
        )
        for task in ("compressibility", "incompressibility")
    },
    **{
        f"b2-sd14-template{number}": (
            replace(B2, prompts=f"b2-template{number}-train", reward=_CLIP),
            f"Stable Diffusion 1.4, B2-DiffuRL over DDPO, template {number}, CLIPScore",
            _B2_SOURCE,
        )
        for number in (1, 2, 3)
    },
    **{
        f"ddpo-sd14-template{number}": (
            replace(B2_BASE, prompts=f"b2-template{number}-train", reward=_CLIP),
            f"Stable Diffusion 1.4, the DDPO that B2-DiffuRL is compared with, template {number}, CLIPScore",
            _B2_SOURCE,
        )
        for number in (1, 2, 3)
    },
    "dpok-sd15": (
        replace(DPOK_CODE, reward="image-reward"), "Stable Diffusion 1.5, DPOK with its value network, ImageReward",
        "DPOK's public code for one prompt (methods.md §7.1); its buffer of older transitions is left out",
    ),
    "d3po-sd15": (
        D3PO, "Stable Diffusion 1.5, DPO on the steps of pairs with the same start; give --reward",
        "D3PO's public code (methods.md §7.3); pictures a round are ours",
    ),
    "thesis-target": (
        _thesis(25, 3000, 32, 25, 1e-7, kl=0.0, warmup=4096, eps=1e-5, weight_decay=0.01),
        "experiment 1, a target picture; give --model, --prompts and --reward target-image:FILE", _THESIS.format(1),
    ),
    "thesis-colour": (
        replace(_thesis(32, 400, 32, 32, 1e-6, kl=0.02), reward="colourfulness"),
        "experiment 2, colourfulness; give --model and --prompts", _THESIS.format(2),
    ),
    "thesis-aesthetic": (
        _thesis(50, 500, 64, 25, 5e-7, kl=0.03),
        "experiment 3, aesthetic quality; give --model, --prompts and --reward", _THESIS.format(3),
    ),
    "thesis-macaw": (
        _thesis(25, 250, 32, 25, 1e-6, kl=0.02),
        "experiment 4, a reward model of one person; give --model, --prompts and --reward", _THESIS.format(4),
    ),
    "thesis-pink": (
        _thesis_sd(16, 25500, 4, 16, 1e-7, (4096, 1024), "thesis-pink"),
        "experiment 6, pink sunglasses; give --reward", _THESIS.format(6),
    ),
    "thesis-pickscore": (
        replace(_thesis_sd(50, 20850, 10, 10, 5e-7, (4096, 1024), "thesis-diverse"), reward="pick-score"),
        "experiment 7, Stable Diffusion 1.5 on PickScore", _THESIS.format(7),
    ),
}  # fmt: skip

PRESETS = {name: Preset(config, summary, source) for name, (config, summary, source) in _CONFIGS.items()}
