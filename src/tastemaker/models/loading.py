"""Pipelines from folders and the hub, one component after the other, so that nothing is left to chance.

`DiffusionPipeline.from_pretrained` draws weights that a file lacks at random and leaves out those it does not know;
here both are errors, and so is everything else that would make another model than the one that was saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn

from tastemaker.errors import ModelError
from tastemaker.hub import hub_cause, is_unreachable, quiet_client
from tastemaker.models import few_steps
from tastemaker.models.families import TOKENIZER_FILES, Family, family_of
from tastemaker.models.files import chosen_weights, files_of, read_json
from tastemaker.models.library_logging import loading, quiet

INDEX = "model_index.json"
_WHOLE_CLIP = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")
"""Weights in a text encoder's file that was saved from a whole CLIP, and that a text encoder does not need."""
_COUNTS = ("position_ids", "num_batches_tracked")
"""Ends of the names of tensors that are whole numbers, beside weights that are not."""
_BINARY = (".safetensors", ".bin", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".ckpt", ".pt", ".pth", ".gguf")


Weights = Callable[[str], bool]
"""Of a component's name: whether its weights are loaded. The others are on PyTorch's meta device: shapes alone."""


def is_text_encoder(part: str) -> bool:
    """Whether a component is one, by its name."""
    return part.startswith("text_encoder")


def _all(part: str) -> bool:
    return True


def _no(part: str) -> bool:
    return False


def _but_text_encoders(part: str) -> bool:
    return not is_text_encoder(part)


def load_pipeline(source: str) -> Any:
    """A pipeline of FAMILIES in float32, from a folder or the hub. Raises ModelError in one sentence.

    Its scheduler is the DDIM scheduler for the process that the checkpoint's own scheduler describes
    (`models.schedulers`). Where a component has no plain weights, those of its only variant are loaded.
    """
    return _pipeline(source, _all)


def load_skeleton(source: str) -> Any:
    """The same pipeline with its networks on PyTorch's meta device: shapes and no weights. Raises ModelError.

    Of a model on the hub only the small files are downloaded: configs, tokenizer and scheduler.
    """
    return _pipeline(source, _no)


def load_without_text_encoders(source: str) -> Any:
    """The same pipeline with its text encoders on PyTorch's meta device. Raises ModelError.

    Their weights are not downloaded, and its components are not tried together.
    """
    return _pipeline(source, _but_text_encoders)


def load_text_encoders(source: str) -> dict[str, nn.Module]:
    """The text encoders of the pipeline at `source` by name, in float32. Raises ModelError."""
    folder = local_folder(source) or _fetched(source, is_text_encoder)
    try:
        index = read_json(folder / INDEX)
        parts = _family(index).parts
        with quiet():
            return {part: _network(folder, part, parts[part]) for part in _present(index) if is_text_encoder(part)}
    except ModelError as error:
        raise ModelError(f"cannot load the model {source}: {error}") from error


def _pipeline(source: str, weights: Weights) -> Any:
    folder = local_folder(source) or _fetched(source, weights)
    try:
        with quiet():
            return _assembled(folder, weights)
    except ModelError as error:
        raise ModelError(f"cannot load the model {source}: {error}") from error


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


def _fetched(source: str, weights: Weights) -> Path:
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
        missing = [part for part in _present(index) if not (folder / part).is_dir()]
    except ModelError:
        missing = ["weights"]
    if missing:
        raise ModelError(
            f"{hub_cause(error, source) or error} (a part of it is in the cache, but {missing[0]} is not)"
        ) from error


def wanted(names: Iterable[str], index: Mapping[str, Any], weights: Weights = _all) -> list[str]:
    """The files of a repository to download for the pipeline that its model_index.json describes.

    Everything small in the folders of its components, and the weights that `chosen_weights` names, of the components
    whose `weights` are wanted. Raises ModelError.
    """
    names, found = list(names), [INDEX]
    family = _family(index)
    for part in (*_present(index), "scheduler"):
        inside = [Path(name).name for name in names if name.rpartition("/")[0] == part]
        small = [name for name in inside if not name.endswith(_BINARY)]
        large: list[str] = []
        if part != "scheduler" and _is_network(family.parts[part]) and weights(part):
            large = files_of(chosen_weights(inside, f"{part}/"), inside)
        found += [f"{part}/{name}" for name in (*small, *large)]
    return found


def _family(index: Mapping[str, Any]) -> Family:
    return family_of(index.get("_class_name", "pipeline of a class that model_index.json does not name"))


def _assembled(folder: Path, weights: Weights) -> Any:
    index = read_json(folder / INDEX)
    family = _family(index)
    present = _present(index)
    for part in present:
        _require_class(index.get(part), part, family.parts[part].__name__)
    named = index.get("scheduler")
    if named is None or not _is_entry(named):
        raise ModelError(f"model_index.json names no scheduler, but {named!r}: expected a library and a class")
    parts: dict[str, Any] = dict.fromkeys(family.optional) | {"scheduler": family.scheduler(folder, named[1])}
    networks = [part for part in present if _is_network(family.parts[part])]
    for part in present:
        network = _network if weights(part) else _meta_network
        parts[part] = (network if part in networks else _tokenizer)(folder, part, family.parts[part])
    settings = {name: index[name] for name in family.settings if name in index}
    with loading():  # StableDiffusionPipeline warns where it mends an old config: `sample_size` before diffusers 0.9
        made = family.pipeline(**parts, **family.options, **settings)
    made.register_to_config(_name_or_path=str(folder))
    if "id2label" in index:
        # Names of classes, which these pipelines carry along but do not know.
        made.register_to_config(id2label=index["id2label"])
    family.check(made)
    network_config = read_json(folder / family.network / "config.json")
    scheduler_class = read_json(folder / "scheduler/scheduler_config.json").get("_class_name", named[1])
    if reason := few_steps.sign(folder, index, network_config, made.scheduler.config, scheduler_class):
        few_steps.warn(str(folder), reason)
    if all(weights(part) for part in networks):
        _require_answer(family, made)
    return made


def _present(index: Mapping[str, Any]) -> list[str]:
    """The components beside the scheduler that a pipeline has: all, but those that it may leave out and does."""
    family = _family(index)
    return [name for name in family.parts if name not in family.optional or index.get(name) not in (None, [None, None])]


def _is_network(kind: Any) -> bool:
    return issubclass(kind, nn.Module)


def _is_entry(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(name, str) for name in value)


def _require_class(entry: Any, part: str, name: str) -> None:
    if not _is_entry(entry):
        raise ModelError(f"model_index.json names no {part}, but {entry!r}: expected {name}")
    if entry[1].removesuffix("Fast") != name:  # CLIPTokenizerFast is CLIPTokenizer today
        raise ModelError(f"its {part} is a {entry[1]}, but this version knows only {name}")


def _tokenizer(folder: Path, part: str, kind: Any) -> Any:
    path = folder / part
    needed = TOKENIZER_FILES[kind]
    if not path.is_dir() or not any(names <= {path.name for path in path.iterdir()} for names in needed):
        expected = ", or ".join(" and ".join(sorted(names, reverse=True)) for names in needed)
        raise ModelError(f"there is no tokenizer in {path}: expected {expected}")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json", "vocab.json"):
        if (path / name).is_file():
            read_json(path / name)
    return _loaded(part, lambda: kind.from_pretrained(path))


def _meta_network(folder: Path, part: str, kind: Any) -> nn.Module:
    """A component with the shapes that its config.json describes, on the meta device."""
    config = _network_config(folder / part, part, kind)

    def make() -> nn.Module:
        with torch.device("meta"):
            if issubclass(kind, transformers.PreTrainedModel):
                settings: Any = kind.config_class
                return kind(settings.from_pretrained(folder / part))
            return kind.from_config(config)

    return _loaded(part, make).requires_grad_(False).eval()


def _network_config(path: Path, part: str, kind: Any) -> dict[str, Any]:
    config = read_json(path / "config.json")
    if config.get("quantization_config") is not None:
        raise ModelError(f"its {part} has quantized weights, which cannot be trained: give it without quantization")
    if "_class_name" in config and config["_class_name"] != kind.__name__:
        raise ModelError(
            f"{part}/config.json is of a {config['_class_name']}, but model_index.json says {kind.__name__}"
        )
    return config


def _network(folder: Path, part: str, kind: Any) -> nn.Module:
    path = folder / part
    _network_config(path, part, kind)
    names = [path.name for path in path.iterdir()]
    weights = chosen_weights(names, str(path))
    for name in files_of(weights, names) if weights.safetensors else ():
        _require_whole(path / name)
    options: dict[str, Any] = {"variant": weights.variant, "use_safetensors": weights.safetensors}
    if issubclass(kind, transformers.PreTrainedModel):
        options |= {"dtype": torch.float32, "ignore_mismatched_sizes": True}  # so that they are reported below
    else:
        options |= {"torch_dtype": torch.float32}
    try:
        made, info = _loaded(part, lambda: kind.from_pretrained(path, output_loading_info=True, **options))
    except ModelError as error:
        if weights.safetensors:
            raise
        # Both libraries read torch files by torch.load(weights_only=True), and then advise to turn that off.
        raise ModelError(
            f"the weights in {path} are a torch file ({files_of(weights, names)[0]}) that does not hold tensors "
            "alone, or is damaged: give safetensors, which `save_pretrained` of diffusers writes"
        ) from error
    for key, found, expected in info["mismatched_keys"]:
        raise ModelError(
            f"the weights in {path} do not fit its config.json: {key} is {list(found)} and not {list(expected)}"
        )
    absent, strange = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if absent:
        raise ModelError(f"the weights in {path} lack {_some(absent)}, which its config.json asks for")
    if is_text_encoder(part):
        strange = [key for key in strange if not key.startswith(_WHOLE_CLIP) and not key.endswith("position_ids")]
    if strange:
        raise ModelError(f"the weights in {path} hold {_some(strange)}, for which its config.json has no place")
    for name, parameter in made.named_parameters():
        if parameter.numel() and not all(end.isfinite() for end in parameter.detach().aminmax()):
            raise ModelError(f"the weights in {path} are not finite: {name} holds NaN or infinity")
    return made.requires_grad_(False).eval()


def _require_whole(path: Path) -> None:
    """Raises ModelError for a safetensors file that is damaged, cut off, or not there but by name."""
    try:
        with safe_open(path, "pt") as file:
            keys = [key for key in file.keys() if not key.endswith(_COUNTS)]  # noqa: SIM118
            kinds = {file.get_slice(key).get_dtype() for key in keys}
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            if file.read(20).startswith(b"version https://git-"):
                raise ModelError(
                    f"{path} is a pointer that git-lfs left: run `git lfs pull` in the folder you cloned"
                ) from error
        raise ModelError(f"{path} is damaged or cut off: {error}") from error
    if whole := sorted(kind for kind in kinds if not kind.startswith(("F", "BF"))):
        raise ModelError(f"{path} holds whole numbers ({whole[0]}), as quantized weights do: give it in floating point")


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"{keys[0]}{more}"


def _loaded(part: str, load: Any) -> Any:
    try:
        with loading():
            return load()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # every library has its own kinds, and those in Rust panic with a BaseException
        # What diffusers advises then is to draw the weights at random.
        reason = " ".join(str(error).split()).partition(" If you want to instead")[0][:300]
        raise ModelError(f"its {part} cannot be loaded: {type(error).__name__}: {reason}") from error


@torch.no_grad()
def _require_answer(family: Family, pipeline: Any) -> None:
    """Asks every component once, for the smallest image that the network can make. Raises ModelError.

    So numbers that do not fit each other end here, and not after a run has begun.
    """

    def ask() -> None:
        model = family.model(pipeline)
        model.resize(model.multiple, model.multiple)
        x = torch.zeros(1, *model.latent_shape)
        times = model.process.times
        time = torch.tensor([times[len(times) // 2]])
        answer = model.predict(x, time, model.encode([""], 1.0))
        if answer.shape != x.shape or not answer.isfinite().all():
            raise ModelError(f"its {family.network} answers {list(answer.shape)} to {list(x.shape)}, or is not finite")
        image = model.decode(x)
        if image.shape[1] != 3:
            raise ModelError(f"its vae decodes to {image.shape[1]} channels, but an image has 3")

    try:
        ask()
    except ModelError:
        raise
    except Exception as error:  # whatever a network's layers raise
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"its components do not fit each other: {type(error).__name__}: {reason}") from error
