"""Algorithms by the name that presets, files and reports give them. Nothing here imports torch."""

from __future__ import annotations

from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.diffusion_dpo import DiffusionDPO
from tastemaker.algorithms.direct_align import DirectAlign
from tastemaker.algorithms.dpo import DPO
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.draft import DRaFT
from tastemaker.algorithms.grpo import GRPO
from tastemaker.algorithms.nft import NFT
from tastemaker.algorithms.pg import PG
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.refl import ReFL
from tastemaker.algorithms.rwr import RWR

ALGORITHMS: dict[str, type] = {
    cls.name: cls
    for cls in (DDPO, PG, DPOK, DPO, GRPO, PPO, RWR, NFT, DiffusionDPO, AlignProp, DRaFT, ReFL, DirectAlign)
}
"""Each is a member of `Config.algorithm`'s annotation: a test."""


def summary(algorithm: type) -> str:
    """The first line of an algorithm's docstring."""
    return (algorithm.__doc__ or "").strip().partition("\n")[0].rstrip(".")
