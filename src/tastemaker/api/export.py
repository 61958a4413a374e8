"""`tm.export`: what a run trained, as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tastemaker.api.runs import Run
from tastemaker.cli.evaluated import find_model
from tastemaker.cli.export import chosen, run_of
from tastemaker.training import export as exporting
from tastemaker.training.export import Exported


def export(
    run: Run | str | Path,
    out: str | Path,
    *,
    format: Literal["diffusers", "kohya", "comfyui"] = "diffusers",
    checkpoint: str | int = "last",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    model: str | Path | None = None,
) -> Exported:
    """Writes what a run trained into a new folder, or a .safetensors file, with a model card, as `tastemaker export`.

    - `run`: also `RUN@ROUND`, an adapter or a mixture, as `tastemaker evaluate` takes them.
    - `format`: `diffusers` for `load_lora_weights`, `kohya` for kohya's scripts, web UIs and ComfyUI, `comfyui` for
      ComfyUI alone.
    - `checkpoint`: `last`, `best`, or a round of which there is a checkpoint.
    - `precision`: of the file's numbers.
    - `model`: the base model, where it is not the run's.

    Returns the paths of the weights and of the card. Raises a TastemakerError where the run, the checkpoint or the form
    is not to be had, or where `out` is in use.
    """
    given = str(run.folder if isinstance(run, Run) else run)
    found = find_model(chosen(given, str(checkpoint)), None if model is None else str(model))
    config = found.configs[0] if len(found.configs) == 1 else None
    return exporting.export(found.evaluated, config, run_of(given), Path(out), format, precision)
