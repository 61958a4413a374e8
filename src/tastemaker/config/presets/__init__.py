"""Configs to start from, by name. Flags and files change single settings of them. Nothing here imports torch."""

from __future__ import annotations

from tastemaker.config.presets import backprop, bundled, ddpo, flow, pairs, papers
from tastemaker.config.presets.preset import Preset

PRESETS: dict[str, Preset] = (
    ddpo.PRESETS | bundled.PRESETS | papers.PRESETS | backprop.PRESETS | flow.PRESETS | pairs.PRESETS
)

__all__ = ["PRESETS", "Preset"]
