"""The models that ship with the package (docs/guides/bundled-model.md)."""

from __future__ import annotations

from pathlib import Path

from tastemaker.errors import ModelError

ASSETS = Path(__file__).parent.parent / "assets"
BUNDLED = {
    "bundled": "small Stable Diffusion that ships with tastemaker, for trying things out on a laptop",
    "bundled-flow": "small Stable Diffusion 3 that ships with tastemaker: a flow transformer of the same drawings",
    "bundled-pixel": "small pixel U-Net that ships with tastemaker; prompts are its classes, such as 'a red circle'",
}
"""The models by name, with a line on each. All of them draw what the judge reads (drawings/judge.py)."""


def bundled_pipeline(name: str = "bundled") -> Path:
    """Folder of a bundled diffusers pipeline, one of BUNDLED. Raises ModelError where the installation lacks it."""
    folder = ASSETS / name
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            f"the bundled model is missing at {folder}: install tastemaker again, or build it with `make {name}`"
        )
    return folder


def shipped() -> dict[str, str]:
    """Those of BUNDLED that this installation can need: `bundled` always, the others where their files are."""
    return {
        name: line
        for name, line in BUNDLED.items()
        if name == "bundled" or (ASSETS / name / "model_index.json").is_file()
    }


def folder_of(source: str) -> str:
    """`source`, or the folder of the bundled model that it names. Raises ModelError as `bundled_pipeline` does."""
    return str(bundled_pipeline(source)) if source in BUNDLED else source
