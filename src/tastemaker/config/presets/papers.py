"""The papers' own settings, besides DDPO's (presets/ddpo.py).

Where a paper's reward, prompts or base model are not part of this version the preset names none, and asks for them. The
source of every value is in docs/methods/paper-presets.md and tests/data/paper_presets.yaml.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.dpo import DPO
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.rwr import RWR
from tastemaker.algorithms.selection import BestWorst, NonZero
from tastemaker.algorithms.windows import Backward
from tastemaker.config.presets.ddpo import OURS, PAPER, with_reward
from tastemaker.config.presets.evidence import EVIDENCE
from tastemaker.config.presets.preset import Preset
from tastemaker.config.schema import Advantage, Checkpoints, Config, Evaluation, Optimizer, Sampling, Speed
from tastemaker.models.tuning import Tuning

SD14, SD15 = "CompVis/stable-diffusion-v1-4", "stable-diffusion-v1-5/stable-diffusion-v1-5"

RWR_PAPER = replace(
    PAPER,
    rounds=10,
    algorithm=RWR(),
    advantage=Advantage(normalise="softmax", beta=0.2),
    sampling=replace(PAPER.sampling, samples=10240, per_prompt=1),
    optimizer=replace(PAPER.optimizer, updates=80, inner_epochs=5),
    checkpoint=Checkpoints(),
)
"""Prompts are drawn uniformly, so that each of the 398 has some 26 images."""

RWR_SPARSE = replace(
    RWR_PAPER,
    advantage=Advantage(normalise="percentile", percentile=0.9),
    selection=NonZero(),
    sampling=replace(RWR_PAPER.sampling, per_prompt=40),
    optimizer=replace(RWR_PAPER.optimizer, updates=Optimizer().updates, images_per_update=128, inner_epochs=50),
)
"""Of n images of a prompt, those from the interpolated percentile 0.9 on are n - ceil(0.9 (n - 1)): 4 of the code's 32,
which is an eighth, and 4 of 40, which is the paper's tenth: 1,024 of 10,240 images, in updates of 128."""

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
    speed=Speed(tf32=True),
)

B2 = replace(
    B2_BASE,
    rounds=33,
    sampling=replace(B2_BASE.sampling, samples=768, per_prompt=3, branches=3, batch=24),
    optimizer=replace(B2_BASE.optimizer, updates=Optimizer().updates, images_per_update=64, inner_epochs=2),
    window=Backward(initial=14, rounds=33),
    selection=BestWorst(0.5),
)

DPOK_CODE = Config(
    model=SD15,
    reward="image-reward",
    prompts="dpok-rabbit",
    rounds=2000,
    algorithm=DPOK(
        clip=1e-4, clamp="direct", reward_weight=10.0, kl=0.01, divergence="noise",
        value="mlp", value_lr=1e-4, value_text="pooled", value_batch=1280, value_updates=1, value_clip_norm=None,
    ),
    advantage=Advantage(normalise="none", clip=None),
    sampling=Sampling(steps=50, eta=1.0, guidance=7.5, samples=10, per_prompt=10, batch=10),
    optimizer=Optimizer(
        lr=1e-5, weight_decay=0.0, clip_norm=0.1, updates=5, minibatch="states", timestep_fraction=0.48, rows=4
    ),
    tuning=Tuning(mode="lora", rank=4, gradient_checkpointing=True),
    checkpoint=Checkpoints(every=10),
)  # fmt: skip
"""5 updates of 4 x 12 states, which are 0.48 of the round's 500."""

DPOK_MULTI = replace(
    DPOK_CODE,
    prompts="",
    rounds=20000,
    algorithm=replace(DPOK_CODE.algorithm, reward_weight=1000.0, kl=0.1),
    sampling=replace(DPOK_CODE.sampling, samples=6, per_prompt=1, batch=6),
    optimizer=replace(DPOK_CODE.optimizer, timestep_fraction=0.4, rows=2),
    checkpoint=Checkpoints(every=100),
)
"""What the public code does on each of its GPUs: 5 updates of 2 x 12 states, 0.4 of 300."""

D3PO = Config(
    model=SD15,
    reward="jpeg-compressibility",
    prompts="ddpo-animals",
    rounds=400,
    algorithm=DPO(beta=0.1, clip=0.1),
    sampling=Sampling(steps=20, eta=1.0, guidance=5.0, samples=40, per_prompt=2, branches=2, batch=20),
    optimizer=Optimizer(lr=3e-5, updates=20, rows=8),
    tuning=Tuning(mode="lora", rank=4),
    speed=Speed(tf32=True),
)
"""20 pairs a round and an update for each, over all its steps: 8,000 updates."""


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
    value: Literal["unet", "cnn"] = "unet",
) -> Config:
    """Columns 1 to 4 of Table 6.2: pixel-space models, fully trained in float32, 32 environments.

    Their rewards are not standardised, so that the divergence's weight acts on the reward's own scale.
    """
    return Config(
        model="",
        prompts="",
        reward=reward,
        rounds=epochs,
        algorithm=PPO(
            clip=0.2, value=value, value_clip=0.2, value_weight=0.5, value_lr=1e-5, value_warmup=1024, kl=kl
        ),
        advantage=Advantage(normalise="none", clip=None),
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
    """Columns 6 and 7 of Table 6.2: Stable Diffusion 1.5 on ten GPUs, 80 environments, standardised rewards."""
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
        evaluation=Evaluation(every=100),
        precision="fp16",
        speed=Speed(tf32=True),
        checkpoint=Checkpoints(every=100),
    )  # fmt: skip


_CLIP = "clip-score:laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_RWR_SOURCE = (
    "DDPO paper A.2, A.3, A.6; rounds, passes and 10,240 images are its JAX code's. Ours: the sampler's latents, where "
    f"the code encodes its images again, and an optimizer that goes on from round to round. {OURS}"
)
_SPARSE_SOURCE = f"{_RWR_SOURCE} 40 images of a prompt, of which 4 are the paper's tenth, are ours; the code has 32."
_B2_SOURCE = (
    "B2-DiffuRL Table 6; initial interval 14, history 8, two passes, one update for each 64 selected images, LoRA, "
    "TF32 and advantage clip 5 are its public code's. Ours: 33 rounds, for the paper's 25,600 reward queries, one "
    "root of each prompt drawn, the round's statistics for a prompt seen once, and float32 where the code has fp16. "
    f"The clip range is DDPO's, as the paper says; the code's 0.1 never acts. {OURS}"
)
_B2_DDPO_SOURCE = (
    "B2-DiffuRL Table 6, column DDPO, for its 25,600 reward queries; LoRA, TF32 and advantage clip 5 are its public "
    "code's. Ours: the normalisation, which is B2-DiffuRL's, and float32 where the code has fp16. "
    f"The clip range is DDPO's. {OURS}"
)
_DPOK_SOURCE = (
    "DPOK's public code, README.md and train_online_pg.py, {}. Ours: float32 where the code has fp16, no buffer of "
    f"older transitions, and no weight decay for the value network. {OURS}"
)
_D3PO_SOURCE = f"D3PO's public code, config/base.py and train_with_rm.py. Ours: float32 where the code has fp16. {OURS}"
_THESIS = (
    "thesis Table 6.2, column {}; {}. The value clip 0.2 is CleanRL's code's, on which the thesis builds. Ours: the "
    "exact divergence, where the thesis prints an estimator with the ratio inverted{}. " + OURS
)
_RAW_SAID = "rewards are not standardised (§6.4, §6.7.1)"
_RAW_INFERRED = "rewards are not standardised, as chapter 7 implies"
_PINK = "rewards are standardised (§6.9.1), here by the base model's images, which is ours"
_IMAGENET = (
    "give --model (OpenAI's 64x64_diffusion.pt by `tastemaker convert guided-diffusion`) and --prompts (its classes)"
)
_COPY = ", and a value network copied from the policy, where the thesis has OpenAI's classifier of ImageNet"

_AESTHETIC = _thesis(50, 500, 64, 25, 5e-7, kl=0.03)
_AESTHETIC = replace(
    _AESTHETIC,
    optimizer=replace(_AESTHETIC.optimizer, lr_scheduler="piecewise_constant", step_rules="0.4:6400,1"),
)
"""A rate of 2e-7, which is 0.4 of 5e-7, for 100 epochs of 64 updates."""

_PICKSCORE = replace(
    _thesis_sd(50, 20850, 10, 10, 5e-7, (4096, 1024), "dataset:yuvalkirstain/pickapic_v1_no_images"),
    reward="pick-score",
    evaluation=Evaluation(every=100, prompts=24, unseen="thesis-diverse", hold_out=True),
)

_CONFIGS: dict[str, tuple[Config, str, str]] = {
    **{
        f"rwr-{task}-sd14": (
            with_reward(RWR_PAPER, f"jpeg-{task}"), "Stable Diffusion 1.4, reward-weighted regression", _RWR_SOURCE
        )
        for task in ("compressibility", "incompressibility")
    },
    **{
        f"rwr-sparse-{task}-sd14": (
            with_reward(RWR_SPARSE, f"jpeg-{task}"),
            "Stable Diffusion 1.4, regression on the best tenth", _SPARSE_SOURCE,
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
            _B2_DDPO_SOURCE,
        )
        for number in (1, 2, 3)
    },
    "dpok-sd15": (
        DPOK_CODE, "Stable Diffusion 1.5, DPOK on one prompt with its value network, ImageReward",
        _DPOK_SOURCE.format("for one prompt"),
    ),
    "dpok-multi-sd15": (
        DPOK_MULTI,
        "Stable Diffusion 1.5, DPOK on many prompts, ImageReward; give --prompts (the code: DrawBench)",
        _DPOK_SOURCE.format("for many prompts, on one GPU of those that it asks for"),
    ),
    "d3po-sd15": (
        D3PO, "Stable Diffusion 1.5, DPO on the steps of pairs with the same start, JPEG size", _D3PO_SOURCE,
    ),
    "thesis-target": (
        _thesis(25, 3000, 32, 25, 1e-7, kl=0.0, warmup=4096, eps=1e-5, weight_decay=0.01, value="cnn"),
        "experiment 1, a target image; give --model, --prompts and --reward target-image:FILE",
        _THESIS.format(1, f"{_RAW_SAID}; value network: Appendix B",
                       ", and random weights of the value network, where the thesis has a trained classifier's"),
    ),
    "thesis-colour": (
        replace(_thesis(32, 400, 32, 32, 1e-6, kl=0.02), reward="colourfulness"),
        f"experiment 2, colourfulness; {_IMAGENET}", _THESIS.format(2, _RAW_INFERRED, _COPY),
    ),
    "thesis-aesthetic": (
        _AESTHETIC, f"experiment 3, aesthetic quality; with --reward aesthetic:FILE (LAION v2); {_IMAGENET}",
        _THESIS.format(3, f"rate of 2e-7 for 100 epochs: §6.6.1; {_RAW_INFERRED}", _COPY),
    ),
    "thesis-macaw": (
        _thesis(25, 250, 32, 25, 1e-6, kl=0.02),
        f"experiment 4, a reward model of one person, as --reward; {_IMAGENET}",
        _THESIS.format(4, _RAW_SAID, _COPY),
    ),
    "thesis-pink": (
        _thesis_sd(16, 25500, 4, 16, 1e-7, (4096, 1024), "thesis-pink"),
        "experiment 6, pink sunglasses; give --reward and --algorithm.value-from a reward model (kind unet)",
        _THESIS.format(
            6, _PINK, ", and a value network copied from the policy, unless --algorithm.value-from names the reward "
            "model, as which theirs begins"
        ),
    ),
    "thesis-pickscore": (
        _PICKSCORE,
        "experiment 7, Stable Diffusion 1.5 on PickScore, with Pick-a-Pic v1's training prompts from the hub",
        _THESIS.format(
            7, "prompts: §6.10.1, evaluated on the 24 of Appendix D; " + _PINK.replace("§6.9.1", "as in §6.9.1"),
            ", prompts weighted by their rows in the data set, where the thesis draws them uniformly, and a value "
            "network copied from the policy, as the thesis describes none",
        ),
    ),
}  # fmt: skip

PRESETS = {name: Preset(*made, evidence=EVIDENCE[name]) for name, made in _CONFIGS.items()}
