"""What text encoders make of prompts in a run's folder, so that a resumed run loads them for new prompts alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tastemaker.diffusion.model import Model
from tastemaker.errors import ModelError
from tastemaker.models import load_model, wrap_pipeline
from tastemaker.models.bundled import folder_of
from tastemaker.models.loading import load_text_encoders, load_without_text_encoders
from tastemaker.models.memory import offload
from tastemaker.models.text_encoders import is_meta, place
from tastemaker.models.third_party import target_of
from tastemaker.models.weights_digest import weights_digest
from tastemaker.safe_torch import require_safe_torch

INDEX = "text_encoders.json"
"""Which text encoders the states are of."""


@dataclass(frozen=True)
class KeptStates:
    """States of prompts that a run has kept."""

    folder: Path
    digest: str
    """Of the text encoders' weights."""


def keep_prompt_states(model: Model, folder: Path, source: str, precision: str) -> None:
    """Keeps what the text encoders make of prompts in folders of `folder`, by the digest of their weights.

    `source` and `precision` are what the model was loaded as.
    """
    encoders = _encoders(model)
    if any(is_meta(encoder) for encoder in encoders.values()):  # of `load_with_kept_states`: they are kept already
        return
    digest = _digest(encoders)
    folder.mkdir(parents=True, exist_ok=True)
    index = json.dumps({"model": source, "precision": precision, "text_encoders": digest}, indent=1)
    (folder / INDEX).write_text(index + "\n", encoding="utf-8")
    _keep(model, KeptStates(folder, digest))


def kept_states(folder: Path, source: str, precision: str) -> KeptStates | None:
    """What `keep_prompt_states` has kept of this model in `folder`; None where there is nothing of it."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = index if isinstance(index, dict) else {}
    digest = found.get("text_encoders")
    if (found.get("model"), found.get("precision")) != (source, precision) or not isinstance(digest, str):
        return None
    return KeptStates(folder, digest)


def load_with_kept_states(
    source: str,
    kept: KeptStates,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    network_device: torch.device | str | None = None,
    *,
    offloaded: bool = False,
) -> Model:
    """The model at `source`, whose text encoders are loaded at the first prompt that has no kept states.

    `offloaded`: whether they are then in main memory while they have no work. Raises ModelError, also later where they
    cannot be loaded, or are not those of the kept states. A model of another package is loaded as a whole.
    """
    if target_of(source):
        return load_model(source, precision, device, network_device)
    require_safe_torch(f"the model {source}", ModelError)
    pipeline: Any = load_without_text_encoders(folder_of(source))
    model = wrap_pipeline(pipeline, precision, device, network_device)

    def load(prompts: Sequence[str]) -> None:
        if not any(is_meta(encoder) for encoder in _encoders(model).values()):
            return
        new = f"{kept.folder} has no states of the prompt {prompts[0]!r}, for which the text encoders are needed"
        try:
            found = load_text_encoders(folder_of(source))
        except ModelError as error:
            raise ModelError(f"{new}: {error}") from error
        for name, encoder in found.items():
            dtype = next(getattr(pipeline, name).parameters()).dtype
            place(encoder, "cpu" if offloaded else model.device, dtype)
        if _digest(found) != kept.digest:
            raise ModelError(
                f"{new}, but those of {source} are others than they were when the run began: restore them, or remove "
                f"{kept.folder} to have all states computed by these"
            )
        for encoder in found.values():
            if offloaded:
                offload(encoder, model.device)
        pipeline.register_modules(**found)

    for states in model.prompt_states.values():
        states.before_computing = load
    _keep(model, kept)
    return model


def _encoders(model: Model) -> dict[str, nn.Module]:
    return {name: part for name, part in model.components.items() if name != "vae"}


def _digest(encoders: dict[str, nn.Module]) -> str:
    return weights_digest(encoders)[:16]


def _keep(model: Model, kept: KeptStates) -> None:
    encoders = _encoders(model).values()
    kinds = {str(one.dtype).removeprefix("torch.") for part in encoders for one in part.parameters()}
    for name, states in model.prompt_states.items():
        states.keep_in(kept.folder / f"{name}-{'-'.join(sorted(kinds))}-{kept.digest}", model.device)
