"""The folder that holds a pipeline's files: one that is given, or the hub's cache, to which they are downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tastemaker.errors import ModelError
from tastemaker.hub import hub_cause, is_unreachable, quiet_client
from tastemaker.models.families import Family, family_of
from tastemaker.models.files import chosen_weights, files_of, read_json

INDEX = "model_index.json"
_BINARY = (".safetensors", ".bin", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".ckpt", ".pt", ".pth", ".gguf")

Weights = Callable[[str], bool]
"""Of a component's name: whether its weights are loaded. The others are on PyTorch's meta device: shapes alone."""


def every_part(part: str) -> bool:
    """The weights of all components."""
    return True


def local_folder(source: str) -> Path | None:
    """The folder of a diffusers pipeline that `source` names, None for a hub name. Raises ModelError."""
    try:
        local = Path(source).expanduser()
        here = local.exists()
    except (OSError, ValueError, RuntimeError) as error:  # names too long, null bytes, no home, no permission
        raise ModelError(f"there is no model at {source!r}: {error}") from error
    if not source.strip():
        raise ModelError("the model's name is empty: give `bundled`, a folder, or a hub name like owner/name")
    if not here:
        if source.count("/") != 1 or source.startswith((".", "/", "~")) or source.endswith("/"):
            raise ModelError(f"there is no model at {source}: give `bundled`, a folder, or a hub name like owner/name")
        return None
    if local.is_file():
        raise ModelError(_about_file(local, source))
    if not (local / INDEX).is_file():
        raise ModelError(f"{source} has no model_index.json: {_about_folder(local)}")
    return local


def _about_file(path: Path, source: str) -> str:
    if path.name == INDEX:
        return f"{source} is a file: give the folder that it is in, {path.parent}"
    if path.suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin"):
        return (
            f"{source} is a single file, but a model is a folder of a diffusers pipeline: make one with "
            f"StableDiffusionPipeline.from_single_file({str(path)!r}).save_pretrained(FOLDER), or give it as --adapter "
            "if it is an adapter"
        )
    return f"{source} is a file: expected a folder written by a diffusers pipeline"


def _about_folder(folder: Path) -> str:
    if (folder / "config.yaml").is_file() and (folder / "metrics.jsonl").is_file():
        return "it is a run and no model, so give it as --adapter, and as --model the model that it trained"
    if any((folder / name).is_file() for name in ("pytorch_lora_weights.safetensors", "adapter_config.json")):
        return "it is an adapter and no model, so give it as --adapter"
    if (folder / "unet").is_dir() or (folder / "transformer").is_dir():
        return "it holds a network and no whole model; what a run trained in full is given as --adapter"
    if (folder.parent / INDEX).is_file():
        return f"it is one component of the model in {folder.parent}, so give that folder"
    return "expected a folder written by a diffusers pipeline"


def fetched(source: str, weights: Weights) -> Path:
    """The folder in the hub's cache that holds the files of `source` that are needed. Raises ModelError."""
    from huggingface_hub import HfApi

    try:
        with quiet_client():
            return _snapshot(HfApi(), source, weights)
    except ModelError as error:
        raise ModelError(f"cannot load the model {source}: {error}") from error
    except Exception as error:  # the hub's client, the HTTP client and the disk each raise their own kinds
        cause = hub_cause(error, source) or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ModelError(f"cannot load the model {source}: there is no such folder here, and {cause}") from error


def _snapshot(hub: Any, source: str, weights: Weights) -> Path:
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        first = Path(hub.hf_hub_download(source, INDEX))
    except RemoteEntryNotFoundError as error:
        raise ModelError(f"the repository has no {INDEX}, which a diffusers pipeline has") from error
    try:
        names = hub.list_repo_files(source)
    except Exception as error:
        if not is_unreachable(error):
            raise
        _require_cached(first.parent, error, source, weights)
        return first.parent
    files = wanted(names, read_json(first), weights)
    return Path(hub.snapshot_download(source, allow_patterns=files))


def _require_cached(folder: Path, error: Exception, source: str, weights: Weights) -> None:
    """Raises ModelError where the cache holds a part of a repository only, and the hub cannot be asked for more."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    index = read_json(folder / INDEX)
    try:
        wanted(names, index, weights)
        missing = [part for part in present_parts(index) if not (folder / part).is_dir()]
    except ModelError:
        missing = ["weights"]
    if missing:
        raise ModelError(
            f"{hub_cause(error, source) or error} (a part of it is in the cache, but {missing[0]} is not)"
        ) from error


def wanted(names: Iterable[str], index: Mapping[str, Any], weights: Weights = every_part) -> list[str]:
    """The files of a repository to download for the pipeline that its model_index.json describes.

    Everything small in the folders of its components, and the weights that `chosen_weights` names, of the components
    whose `weights` are wanted. Raises ModelError.
    """
    names, found = list(names), [INDEX]
    family = family_in(index)
    for part in (*present_parts(index), "scheduler"):
        inside = [Path(name).name for name in names if name.rpartition("/")[0] == part]
        small = [name for name in inside if not name.endswith(_BINARY)]
        large: list[str] = []
        if part != "scheduler" and is_network(family.parts[part]) and weights(part):
            large = files_of(chosen_weights(inside, f"{part}/"), inside)
        found += [f"{part}/{name}" for name in (*small, *large)]
    return found


def family_in(index: Mapping[str, Any]) -> Family:
    """The family of the pipeline that its model_index.json describes. Raises ModelError for one that is not known."""
    return family_of(index.get("_class_name", "pipeline of a class that model_index.json does not name"))


def present_parts(index: Mapping[str, Any]) -> list[str]:
    """The components beside the scheduler that a pipeline has: all, but those that it may leave out and does."""
    family = family_in(index)
    return [name for name in family.parts if name not in family.optional or index.get(name) not in (None, [None, None])]


def is_network(kind: Any) -> bool:
    """Whether a component's class has weights."""
    return issubclass(kind, nn.Module)
