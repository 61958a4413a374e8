"""The published settings of MaPO and Diffusion-KTO, which learn from given pairs.

The source of every value is in docs/methods/paper-presets.md and tests/data/paper_presets_flow.yaml.
"""

from __future__ import annotations

from dataclasses import replace

from tastemaker.algorithms.diffusion_kto import DiffusionKTO
from tastemaker.algorithms.mapo import MaPO
from tastemaker.config.data_settings import Pairs
from tastemaker.config.presets.evidence import EVIDENCE
from tastemaker.config.presets.papers import SD15
from tastemaker.config.presets.preset import Preset
from tastemaker.config.schema import Checkpoints, Config, Evaluation, Optimizer, Sampling
from tastemaker.models.tuning import Tuning

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"

MAPO = Config(
    model=SDXL,
    prompts="",
    reward="pick-score",
    rounds=2000,
    algorithm=MaPO(beta=0.1, snr=0.5),
    pairs=Pairs(sources=("yuvalkirstain/pickapic_v2",)),
    sampling=Sampling(steps=25, guidance=5.0, eta=0.0, samples=16),
    optimizer=Optimizer(lr=1e-5, weight_decay=1e-2, updates=1, rows=8, eight_bit=True),
    tuning=Tuning(mode="full", gradient_checkpointing=True),
    evaluation=Evaluation(every=200),
    precision="fp16",
    checkpoint=Checkpoints(every=500),
)
"""An update a round, of 8 pairs twice. The sampler is the evaluations'."""

DIFFUSION_KTO = Config(
    model=SD15,
    prompts="",
    reward="pick-score",
    rounds=10000,
    algorithm=DiffusionKTO(beta=5000.0),
    pairs=Pairs(sources=("yuvalkirstain/pickapic_v2",)),
    sampling=Sampling(steps=25, guidance=7.5, eta=0.0, samples=1024),
    optimizer=Optimizer(lr=1e-7, warmup=1000, weight_decay=1e-2, updates=1, rows=2, eight_bit=True),
    tuning=Tuning(mode="full", gradient_checkpointing=True),
    evaluation=Evaluation(every=500),
    precision="fp16",
    checkpoint=Checkpoints(every=5000),
)
"""2,048 images an update, which are 1,024 pairs here."""

_MAPO = (
    "MaPO's public code (mapo-t2i/mapo): the command of its README.md and the defaults of args.py, with the data set "
    "of its experiments. Ours: no flipped images; the evaluations' reward, interval and steps without noise"
)

_CONFIGS: dict[str, tuple[Config, str, str]] = {
    "mapo-sdxl": (
        MAPO, "SDXL, MaPO on Pick-a-Pic v2 (335 GB), the whole U-Net; give --prompts for the evaluations", _MAPO,
    ),
    "mapo-sdxl-lora": (
        replace(MAPO, tuning=Tuning(rank=8, gradient_checkpointing=True)),
        "SDXL, MaPO on Pick-a-Pic v2 (335 GB), LoRA; give --prompts for the evaluations", _MAPO,
    ),
    "diffusion-kto-sd15": (
        DIFFUSION_KTO,
        "Stable Diffusion 1.5, Diffusion-KTO on Pick-a-Pic v2 (335 GB); give --prompts for the evaluations",
        "Diffusion-KTO A.1. The rest is its public code's (jacklishufan/diffusion-kto), exps/example.sh and the "
        "defaults of train_kto_sd_v1.5.py, which has other values of beta (1000), warm-up (200) and updates (20,000). "
        "Ours: both images of a pair, half of them good, where the paper draws 0.8 of its images from the good ones; "
        "all captions, where the code drops a fifth; and the evaluations' reward, guidance, interval and steps without "
        "noise",
    ),
}  # fmt: skip

PRESETS = {name: Preset(*made, evidence=EVIDENCE[name]) for name, made in _CONFIGS.items()}
