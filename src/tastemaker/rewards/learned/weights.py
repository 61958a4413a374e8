"""Files of weights that a user names, here or on the hub: tensors and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tastemaker.errors import RewardError
from tastemaker.hub import hub_cause
from tastemaker.safe_torch import require_safe_torch


def read_weights(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a torch file, which may hold nothing but tensors and plain containers.

    Of a training checkpoint, those under `state_dict`. Raises RewardError where it cannot be read, and where torch is
    too old to read a torch file safely.
    """
    if path.suffix != ".safetensors":
        require_safe_torch(f"{path}, the weights of the reward {name},", RewardError)
    try:
        found: Any = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True, mmap=None)
        )
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise RewardError(f"the reward {name} cannot read its weights {path}: {first_sentence(error)}") from error
    except Exception as error:  # pickle.UnpicklingError, where a file holds code
        raise RewardError(
            f"the reward {name} does not read {path}, which holds more than tensors ({first_sentence(error)}): save "
            "its state dict alone, as safetensors"
        ) from error
    for key in ("state_dict", "model"):
        found = found.get(key, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise RewardError(f"the reward {name} finds no state dict in {path}")
    return found


def downloaded(repository: str, file: str, name: str) -> Path:
    """A file of the hub's, in its cache where it is there. Raises RewardError where it cannot be had."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the hub's client, and what it stands on, raise many kinds
        raise missing(name, f"{repository}/{file}", f"hf download {repository} {file}", error) from error


def missing(name: str, what: str, command: str, error: Exception) -> RewardError:
    """What to do where something is neither here nor to be had."""
    cause = None if Path(what).exists() else hub_cause(error, "/".join(what.split("/")[:2]))
    where = "" if isinstance(error, RewardError) else f": {cause or first_sentence(error)}"
    return RewardError(
        f"the reward {name} cannot load {what}{where}. Where there is no network, run `{command}` on a machine that "
        f"has one, copy the files, and give their folder or file: `{name.partition(':')[0]}:PATH`"
    )


def first_sentence(error: Exception) -> str:
    """An error's first sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split()).split('. ')[0]}"
