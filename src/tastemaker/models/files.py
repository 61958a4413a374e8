"""The files of a diffusers pipeline's folder: JSON, and weights under their many names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tastemaker.errors import ModelError

_SHARD = r"-\d{5}-of-\d{5}"
_WEIGHTS = re.compile(
    rf"(?:diffusion_pytorch_model|pytorch_model|model)(?:{_SHARD})?(?:\.(?P<variant>[^.]+?)(?:{_SHARD})?)?"
    r"\.(?P<format>safetensors|bin)"
)
"""As model.safetensors, model.fp16.bin, model.fp16-00001-of-00002.safetensors, model-00001-of-00002.fp16.bin."""


@dataclass(frozen=True)
class Weights:
    """Which of a component's weights to load."""

    variant: str | None
    """As in `save_pretrained(variant=...)`; None for the plain ones."""
    safetensors: bool
    """Otherwise they are a torch file, of which only tensors are read."""


def chosen_weights(names: Iterable[str], where: str) -> Weights:
    """The weights to load out of a component's files: plain ones before a variant's, safetensors before torch files.

    Raises ModelError where there are none, or only several variants.
    """
    names = sorted(names)
    found = {
        Weights(match["variant"], match["format"] == "safetensors") for name in names if (match := is_weights(name))
    }
    plain = sorted((weights for weights in found if weights.variant is None), key=lambda weights: weights.safetensors)
    if plain:
        return plain[-1]
    variants = sorted({weights.variant or "" for weights in found})
    if len(variants) > 1:
        raise ModelError(
            f"{where} has weights in the variants {' and '.join(variants)} and no plain ones: keep the files of one of "
            "them"
        )
    if not found:
        others = [name for name in names if Path(name).suffix in (".msgpack", ".h5", ".onnx", ".ckpt", ".pt", ".gguf")]
        seen = f", only {others[0]}" if others else ""
        raise ModelError(f"{where} has no weights{seen}: expected safetensors as `save_pretrained` of diffusers writes")
    return max(found, key=lambda weights: weights.safetensors)


def files_of(weights: Weights, names: Iterable[str]) -> list[str]:
    """The files, whole or in shards, of the weights that were chosen."""
    form = "safetensors" if weights.safetensors else "bin"
    return sorted(
        name
        for name in names
        if (match := is_weights(name)) and (match["variant"], match["format"]) == (weights.variant, form)
    )


def is_weights(name: str) -> re.Match[str] | None:
    """Whether a file has the name of a component's weights, with what its name says."""
    return _WEIGHTS.fullmatch(name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's. Raises ModelError where the file is missing or no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"the model lacks {path.parent.name}/{path.name}: there is no file {path}") from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise ModelError(f"{path} is not JSON, or was cut off (line {error.lineno}: {error.msg})") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a JSON {type(found).__name__}, but must hold an object")
    return found
