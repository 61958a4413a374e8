"""What a preset is."""

from __future__ import annotations

from dataclasses import dataclass

from tastemaker.config.presets.evidence import Evidence
from tastemaker.config.schema import Config


@dataclass(frozen=True)
class Preset:
    """A named config with one line on what it does, one on where its numbers come from, and what was measured of it."""

    config: Config
    summary: str
    source: str
    evidence: Evidence
