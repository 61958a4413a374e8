"""Every method on the bundled model, with the settings that docs/methods/README.md compares."""

from __future__ import annotations

from dataclasses import replace

from tastemaker.algorithms.dpo import DPO
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.grpo import GRPO
from tastemaker.algorithms.nft import NFT
from tastemaker.algorithms.pg import PG
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.rwr import RWR
from tastemaker.selection import BestWorst, NonZero
from tastemaker.training.config import Config
from tastemaker.training.presets.ddpo import BUNDLED, gentle, with_reward
from tastemaker.training.presets.preset import Preset
from tastemaker.windows import Backward

START = gentle(BUNDLED)


def _likelihood(**changes: object) -> Config:
    return replace(START, **changes)  # pyright: ignore[reportArgumentType]


def _forward(lr: float, **changes: object) -> Config:
    """Methods of the forward process draw times from the whole process, and as many as the others have steps.

    At the others' rate of 6e-3 regressions forget how to draw, whatever the rewards: with equal weights for all
    pictures 19 % of them still showed their prompt after 6 rounds (docs/methods/README.md).
    """
    return replace(START, optimizer=replace(START.optimizer, lr=lr, first_share=1.0), **changes)  # pyright: ignore[reportArgumentType]


def b2(config: Config, rounds: int) -> Config:
    """B2-DiffuRL over any likelihood method: four branches a root, the last 11 of 16 steps and more as rounds go on."""
    return replace(
        config,
        rounds=rounds,
        sampling=replace(config.sampling, branches=4),
        window=Backward(initial=11, rounds=rounds),
        selection=BestWorst(0.5),
        advantage=replace(config.advantage, normalise="windowed", min_count=2),
    )


def _pairs(config: Config) -> Config:
    """Two objects in a relation, which the base model gets right in less than half of its pictures."""
    return replace(
        with_reward(config, "judge-score"),
        prompts="bundled-pair",
        rounds=12,
        # A prompt comes again after many rounds: the eight pictures of one are what it is compared by.
        advantage=replace(config.advantage, min_count=8),
        optimizer=replace(config.optimizer, lr=5e-4, warmup=8),
        evaluation=replace(config.evaluation, every=4, prompts=32, per_prompt=4),
    )


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
        _forward(6e-3, algorithm=NFT(noises=16)),
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
        "regression on the best tenth of each prompt's pictures",
    ),
    "ddpo-relations": (
        _pairs(BUNDLED),
        "two objects in a relation, the judge's confidence as the reward; takes thousands of pictures",
    ),
    "b2-relations": (b2(_pairs(BUNDLED), 12), "the same with B2-DiffuRL"),
}

PRESETS = {
    name: Preset(config, f"bundled model, {summary}", "docs/methods/README.md")
    for name, (config, summary) in SIMPLE.items()
}
