"""The model that ships with the package (docs/guides/bundled-model.md)."""

from __future__ import annotations

from pathlib import Path

from tastemaker.errors import ModelError

ASSETS = Path(__file__).parent.parent / "assets"


def bundled_pipeline() -> Path:
    """Folder of the bundled diffusers pipeline. Raises ModelError where the installation lacks it."""
    folder = ASSETS / "bundled"
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            f"the bundled model is missing at {folder}: install tastemaker again, or build it with `make bundled`"
        )
    return folder
