"""What a preset is."""

from __future__ import annotations

from dataclasses import dataclass

from tastemaker.config.schema import Config


@dataclass(frozen=True)
class Preset:
    """A named config with one line on what it does and one on where its numbers come from."""

    config: Config
    summary: str
    source: str
