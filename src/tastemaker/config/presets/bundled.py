"""Every method on the bundled model, with the settings that docs/results/methods.md compares."""

from __future__ import annotations

from dataclasses import replace

from tastemaker.algorithms.dpo import DPO
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.dppo import DPPO
from tastemaker.algorithms.grpo import GRPO
from tastemaker.algorithms.nft import NFT
from tastemaker.algorithms.pg import PG
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.rwr import RWR
from tastemaker.algorithms.selection import BestWorst, NonZero
from tastemaker.algorithms.windows import Backward, Random
from tastemaker.config.presets.ddpo import BUNDLED, gentle, with_reward
from tastemaker.config.presets.evidence import EVIDENCE
from tastemaker.config.presets.preset import Preset
from tastemaker.config.schema import Config

START = gentle(BUNDLED)


def _likelihood(**changes: object) -> Config:
    return replace(START, **changes)  # pyright: ignore[reportArgumentType]


def _forward(lr: float, clip_norm: float = 1.0, **changes: object) -> Config:
    """Methods of the forward process draw times from the whole process, and as many as the others have steps.

    At the others' rate of 6e-3 regressions forget how to draw, whatever the rewards: with equal weights for all
    images 19 % of them still showed their prompt after 6 rounds (docs/results/methods.md).
    """
    optimizer = replace(START.optimizer, lr=lr, clip_norm=clip_norm, first_share=1.0)
    return replace(START, optimizer=optimizer, **changes)  # pyright: ignore[reportArgumentType]


def b2(config: Config, rounds: int, initial: int = 11) -> Config:
    """B2-DiffuRL over any likelihood method: four branches a root, the last `initial` steps, more as rounds go on."""
    return replace(
        config,
        rounds=rounds,
        sampling=replace(config.sampling, branches=4),
        window=Backward(initial=initial, rounds=rounds),
        selection=BestWorst(0.5),
        advantage=replace(config.advantage, normalise="windowed", min_count=2),
    )


def grpo_fast(config: Config, size: int = 2) -> Config:
    """Flow-GRPO-Fast: a prompt's images are one until a window of `size` random steps among the first half, which alone
    has noise and is trained."""
    return replace(
        config,
        algorithm=GRPO(clip=1e-2),
        advantage=replace(config.advantage, normalise="group"),
        selection=NonZero(),
        window=Random(size),
        sampling=replace(config.sampling, branches=config.sampling.per_prompt, noise_outside=False),
        optimizer=replace(config.optimizer, first_share=0.5),
    )


def on_flow(config: Config) -> Config:
    """On the bundled flow transformer, with fewer and cheaper images: half of them, of half the steps, unguided."""
    return replace(
        config,
        model="bundled-flow",
        prompts="bundled-single",
        sampling=replace(config.sampling, steps=10, eta=0.5, guidance=1.0, samples=64, per_prompt=8),
        evaluation=replace(config.evaluation, every=3),
    )


def _numbers(config: Config) -> Config:
    """The right number of objects, by the bundled CLIP's score; 144 prompts, and 48 unseen ones beside them.

    Alignment has far more noise in its gradient than compressibility. What leaves most of it out: few steps, so that
    each decides much, and the first half of them, which settles what will be there; the layers that look at the prompt;
    and prompts that count for as much as their rewards differ (docs/results/bundled-clip.md). The run leaves the
    average of its weights, as the noise moves them about.
    """
    return replace(
        config,
        prompts="bundled-count-train",
        reward="clip-score",
        rounds=120,
        advantage=replace(config.advantage, normalise="group", spread="round"),
        sampling=replace(config.sampling, steps=8, eta=0.7, guidance=1.0, samples=64, per_prompt=8),
        optimizer=replace(config.optimizer, lr=1e-3, warmup=8, first_share=0.5, ema=0.99),
        tuning=replace(config.tuning, targets=("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")),
        evaluation=replace(config.evaluation, every=30, prompts=48, per_prompt=8, unseen="bundled-count-test"),
    )


def _pairs(config: Config) -> Config:
    """Two objects in a relation, which the base model gets right in a third of its images; six steps of eight."""
    numbers = _numbers(config)
    return replace(
        with_reward(numbers, "judge-score"),
        prompts="bundled-pair",
        rounds=80,
        optimizer=replace(numbers.optimizer, first_share=0.75),
        evaluation=replace(numbers.evaluation, every=20, prompts=32, unseen=None),
    )


FLOW_FAST = grpo_fast(on_flow(START))
FLOW_FAST = replace(FLOW_FAST, algorithm=GRPO(clip=1e-2, kl=0.0))

SIMPLE = {
    "pg-compressibility": (_likelihood(algorithm=PG()), "policy gradient with importance weights, unclipped"),
    "dpok-compressibility": (_likelihood(algorithm=DPOK(clip=1e-2)), "DPOK: divergence from the base in the loss"),
    "grpo-compressibility": (
        _likelihood(
            algorithm=GRPO(clip=1e-2),
            advantage=replace(START.advantage, normalise="group"),
            selection=NonZero(),
        ),
        "GRPO: group-relative advantages",
    ),
    "grpo-fast-compressibility": (
        grpo_fast(START),
        "Flow-GRPO-Fast: two random steps with noise, from which all images of a prompt branch",
    ),
    "dpo-compressibility": (
        _likelihood(algorithm=DPO(), optimizer=replace(START.optimizer, lr=2e-3, timestep_fraction=0.25)),
        "DPO on the steps of pairs (D3PO)",
    ),
    "ppo-compressibility": (
        _likelihood(
            algorithm=PPO(clip=1e-2, value_lr=1e-3, value_warmup=0),
            advantage=replace(START.advantage, normalise="base"),
            optimizer=replace(START.optimizer, lr=2e-3, minibatch="states"),
        ),
        "PPO with a value network, states pooled",
    ),
    "b2-compressibility": (b2(START, 8), "B2-DiffuRL over DDPO: branches, backward progressive window"),
    "nft-compressibility": (
        # The norm of a loss that has the public code's factor `span` in it: 5 times what it would be without.
        _forward(6e-3, clip_norm=5.0, algorithm=NFT(noises=16)),
        "DiffusionNFT: the forward process, no likelihoods",
    ),
    "rwr-compressibility": (
        _forward(1e-3, algorithm=RWR(noises=16), advantage=replace(START.advantage, normalise="softmax", beta=30.0)),
        "reward-weighted regression",
    ),
    "rwr-sparse-compressibility": (
        _forward(
            1e-3,
            algorithm=RWR(noises=64),
            advantage=replace(START.advantage, normalise="percentile"),
            selection=NonZero(),
        ),
        "regression on the best tenth of each prompt's images",
    ),
    "ddpo-clip": (
        _numbers(BUNDLED),
        "CLIPScore, the right number of objects, without guidance; 7,680 images in 12 minutes",
    ),
    "ddpo-relations": (
        _pairs(BUNDLED),
        "two objects in a relation, the judge's confidence as the reward; takes thousands of images",
    ),
    "b2-relations": (b2(_pairs(BUNDLED), 80, initial=4), "the same with B2-DiffuRL"),
}

ON_FLOW = {
    "flow-grpo-fast-bundled-flow": (FLOW_FAST, "Flow-GRPO-Fast: two random steps with noise, one root of each prompt"),
    "flow-dppo-bundled-flow": (
        replace(FLOW_FAST, algorithm=DPPO(max_divergence=1e-4)),
        "Flow-DPPO: a limit for the divergence in place of the clip, at the same two steps",
    ),
}
"""With the settings that docs/results/new-methods.md has figures of."""

PRESETS = {
    name: Preset(config, f"bundled model, {summary}", "docs/results/methods.md", EVIDENCE[name])
    for name, (config, summary) in SIMPLE.items()
} | {
    name: Preset(config, f"bundled flow transformer, {summary}", "docs/results/new-methods.md", EVIDENCE[name])
    for name, (config, summary) in ON_FLOW.items()
}
