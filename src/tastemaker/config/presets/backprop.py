"""Reward backpropagation: the papers' settings, and the bundled model's.

Where a paper's reward, prompts or base model are not part of this version the preset names none, and asks for them.
"""

from __future__ import annotations

from dataclasses import replace

from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.direct_align import DirectAlign
from tastemaker.algorithms.draft import DRaFT
from tastemaker.algorithms.refl import ReFL
from tastemaker.config.presets.ddpo import BUNDLED as DDPO_BUNDLED
from tastemaker.config.presets.evidence import EVIDENCE
from tastemaker.config.presets.papers import SD14, SD15
from tastemaker.config.presets.preset import Preset
from tastemaker.config.schema import Checkpoints, Config, EarlyStop, Evaluation, Optimizer, Sampling, Speed
from tastemaker.models.tuning import Tuning

ALIGNPROP = Config(
    model=SD15,
    reward="",
    prompts="alignprop-animals",
    rounds=7,
    algorithm=AlignProp(scale=0.01),
    sampling=Sampling(steps=50, eta=0.0, guidance=7.5, samples=256, per_prompt=1, batch=8),
    optimizer=Optimizer(lr=1e-3, weight_decay=0.1, clip_norm=5.0, updates=2, rows=4),
    tuning=Tuning(mode="lora", rank=4),
    speed=Speed(tf32=True),
)
"""Seven epochs of two updates of 128 images, as the aesthetic reward's. The limit of the gradient's norm is that of the
public code, which multiplies the loss by 0.01 before: without the factor it would be 500."""

LONG = replace(ALIGNPROP, rounds=100, checkpoint=Checkpoints(every=5))

SECOND_CODE = replace(
    ALIGNPROP,
    rounds=20,
    algorithm=AlignProp(
        truncation="gaussian", last=8, spread=5.0, images_per_draw=8, objective="distance", target=10.0, scale=0.01
    ),
    sampling=replace(ALIGNPROP.sampling, eta=1.0, guidance=5.0, samples=128),
    optimizer=replace(ALIGNPROP.optimizer, weight_decay=1e-4, clip_norm=1.0, updates=1),
)

DRAFT = replace(
    ALIGNPROP,
    rounds=2000,
    algorithm=DRaFT(last=1),
    sampling=replace(ALIGNPROP.sampling, samples=4, batch=4),
    optimizer=Optimizer(lr=4e-4, weight_decay=0.1, updates=1, rows=4),
    tuning=Tuning(mode="lora", rank=8),
    speed=Speed(),
    evaluation=Evaluation(every=100),
    checkpoint=Checkpoints(every=100),
)

REFL = Config(
    model=SD14,
    reward="image-reward",
    prompts="",
    rounds=100,
    algorithm=ReFL(images_per_draw=2),
    sampling=Sampling(steps=40, eta=1.0, guidance=7.5, samples=64, per_prompt=1, batch=8),
    optimizer=Optimizer(lr=1e-5, weight_decay=1e-2, updates=1, rows=2, ema=0.9),
    tuning=Tuning(mode="full"),
    checkpoint=Checkpoints(every=10),
)

THESIS = Config(
    model="",
    reward="",
    prompts="",
    rounds=750,
    algorithm=AlignProp(truncation="fixed"),
    sampling=Sampling(steps=25, eta=1.0, guidance=1.0, samples=32, per_prompt=1, batch=32),
    optimizer=Optimizer(lr=1e-6, warmup=100, weight_decay=0.01, clip_norm=1e9, updates=1, rows=4),
    tuning=Tuning(mode="full"),
    checkpoint=Checkpoints(every=10),
)

BUNDLED = replace(
    DDPO_BUNDLED,
    reward="jpeg-surrogate-compressibility",
    rounds=12,
    algorithm=AlignProp(checkpointing="step"),
    sampling=Sampling(steps=20, eta=0.0, guidance=5.0, samples=4, per_prompt=1, batch=64),
    optimizer=Optimizer(lr=3e-3, warmup=2, updates=2, rows=2),
    evaluation=Evaluation(every=2, prompts=8, per_prompt=8),
    early_stop=EarlyStop(metric="judge/correct", min_delta=0.2),
)
"""A gradient is worth so many samples that two images make an update; left alone it soon ruins the images."""

REMOVAL = replace(
    BUNDLED,
    reward="judge-removal:circle - judge-removal:first-named",
    prompts="bundled-and",
    rounds=40,
    sampling=replace(BUNDLED.sampling, samples=16),
    optimizer=replace(BUNDLED.optimizer, lr=1.5e-3, rows=4),
    evaluation=Evaluation(every=8, prompts=56, per_prompt=4),
)
"""The paper's 1 - c alone says nothing of the other object, which goes as well (docs/results/concept-removal.md).
Nothing is watched: what the judge calls correct has the circle."""

ALIGNMENT = replace(
    BUNDLED,
    reward="clip-score",
    prompts="bundled-count-train",
    rounds=24,
    sampling=replace(BUNDLED.sampling, guidance=1.0, samples=16),
    optimizer=replace(BUNDLED.optimizer, lr=1e-3, rows=8),
    evaluation=Evaluation(every=12, prompts=48, per_prompt=4, unseen="bundled-count-test"),
)
"""Without guidance the base model draws the wrong number in a third of its images, which leaves much to learn."""

_OURS = "rows, batch and intervals of checkpoints and evaluations, and float32 for the weights that do not learn"
_ALIGNPROP = (
    "AlignProp §4.1, §5, A.1 and Tables 1 and 3; one K for each batch, as in Eq. 4 and Fig. 2 (its code draws at every "
    "step). Its 2023 public code: guidance, images of a round and an update, scale, weight decay, limit of the "
    f"gradient's norm, LoRA rank and TF32. Ours: {_OURS}"
)
_DRAFT = (
    "DRaFT's values as two re-implementations' code gives them, which limit no gradient's norm; the limit of 1 is "
    f"ours, and so are the prompts, {_OURS}"
)
_BUNDLED = "measured on the bundled model: docs/results/alignprop.md"
_SAME = "the settings of alignprop-compressibility, which were measured: docs/results/alignprop.md"

_CONFIGS: dict[str, tuple[Config, str, str]] = {
    "alignprop-compressibility": (BUNDLED, "bundled model, the reward's own gradient: simple images", _BUNDLED),
    "alignprop-incompressibility": (
        replace(BUNDLED, reward="jpeg-surrogate-incompressibility"),
        "bundled model, the reward's own gradient: busy images", _SAME,
    ),
    "alignprop-removal": (
        REMOVAL, "bundled model, concept removal: no circle where the prompt asks for one beside another object",
        "measured on the bundled model: docs/results/concept-removal.md; the paper's set-up is AlignProp §5, iii",
    ),
    "alignprop-clip": (
        ALIGNMENT, "bundled model, CLIPScore: the right number of objects, without guidance",
        "measured on the bundled model: docs/results/bundled-clip.md",
    ),
    "draft-compressibility": (
        replace(BUNDLED, algorithm=DRaFT(last=1, checkpointing="step")),
        "bundled model, the gradient through the last step (DRaFT-1)", _BUNDLED,
    ),
    "draft-lv-compressibility": (
        replace(BUNDLED, algorithm=DRaFT(noises=2, checkpointing="step")),
        "bundled model, the same with the image noised twice (DRaFT-LV)", _SAME,
    ),
    "refl-compressibility": (
        replace(BUNDLED, algorithm=ReFL(objective="reward", target=None, scale=1.0, guided=True, checkpointing="step")),
        "bundled model, the gradient at a random late step (ReFL)", _SAME,
    ),
    "direct-align-compressibility": (
        replace(BUNDLED, algorithm=DirectAlign(checkpointing="step")),
        "bundled model, the gradient at any step without a chain (SRPO)", _SAME,
    ),
    "alignprop-aesthetic-sd15": (
        replace(ALIGNPROP, algorithm=AlignProp(objective="distance", target=10.0, scale=0.01)),
        "Stable Diffusion 1.5, 45 animals, 14 updates; give --reward aesthetic:FILE (LAION v2)",
        f"{_ALIGNPROP}. The distance to 10 is the code's",
    ),
    "alignprop-hps-sd15": (
        replace(LONG, reward="hps-v2", prompts=""),
        "Stable Diffusion 1.5, 100 epochs on HPS v2; give --prompts (the paper: 2,400 of HPS v2's)", _ALIGNPROP,
    ),
    "alignprop-compressibility-sd15": (
        replace(LONG, reward="jpeg-surrogate-compressibility"),
        "Stable Diffusion 1.5, 45 animals, a network that predicts the JPEG size",
        f"{_ALIGNPROP}. The network is ours (the paper's is CLIP, fine-tuned), and so is the choice of prompts",
    ),
    "alignprop-removal-sd15": (
        replace(LONG, reward="concept-removal:books", prompts=""),
        "Stable Diffusion 1.5, concept removal by OwlViT; give --prompts '[CONCEPTS.txt] and books' with a file of "
        "concepts (the paper prints one, the list alignprop-removal)",
        _ALIGNPROP,
    ),
    "alignprop-sd15-gaussian": (
        SECOND_CODE,
        "Stable Diffusion 1.5, 45 animals, the 2024 public code's settings for the aesthetic score; give --reward",
        "AlignProp's 2024 public code, without its mapping images to [0, 1] twice. The prompts are ours (the code's "
        f"are 750 of HPS v2's), and so are {_OURS}",
    ),
    "draft-1-sd15": (DRAFT, "Stable Diffusion 1.5, DRaFT-1; give --reward", _DRAFT),
    "draft-lv-sd15": (
        replace(DRAFT, algorithm=DRaFT(noises=2)), "Stable Diffusion 1.5, DRaFT-LV; give --reward", _DRAFT,
    ),
    "draft-50-sd15": (
        replace(DRAFT, algorithm=DRaFT(last=None)), "Stable Diffusion 1.5, DRaFT through all 50 steps; give --reward",
        _DRAFT,
    ),
    "refl-sd14": (
        REFL, "Stable Diffusion 1.4, ReFL on ImageReward; give --prompts",
        "ImageReward's public code, ReFL.py and train_refl.sh. The average's constant decay of 0.9 is ours (the code's "
        f"rises to 0.92), and so are the guidance of the evaluations, {_OURS}",
    ),
    "thesis-backprop": (
        THESIS, "experiment 5, no reinforcement learning; give --model (OpenAI's 64x64_diffusion.pt by "
        "`tastemaker convert guided-diffusion`), --prompts (its classes) and --reward (that of experiment 4)",
        "thesis §6.8 and Table 6.2, column 5; the interval of checkpoints and the batch of evaluations are ours",
    ),
}  # fmt: skip

PRESETS = {name: Preset(*made, evidence=EVIDENCE[name]) for name, made in _CONFIGS.items()}
