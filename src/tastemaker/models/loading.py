"""Pipelines from folders and the hub, one component after the other, so that nothing is left to chance.

`DiffusionPipeline.from_pretrained` draws weights that a file lacks at random and leaves out those it does not know;
here both are errors, and so is everything else that would make another model than the one that was saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn

from tastemaker.errors import ModelError
from tastemaker.models import few_steps
from tastemaker.models.families import TOKENIZER_FILES, Family
from tastemaker.models.files import chosen_weights, files_of, read_json
from tastemaker.models.library_logging import loading, quiet
from tastemaker.models.pipeline_folder import (
    INDEX,
    Weights,
    every_part,
    family_in,
    fetched,
    is_network,
    local_folder,
    present_parts,
)

_WHOLE_CLIP = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")
"""Weights in a text encoder's file that was saved from a whole CLIP, and that a text encoder does not need."""
_COUNTS = ("position_ids", "num_batches_tracked")
"""Ends of the names of tensors that are whole numbers, beside weights that are not."""


def is_text_encoder(part: str) -> bool:
    """Whether a component is one, by its name."""
    return part.startswith("text_encoder")


def _no(part: str) -> bool:
    return False


def _but_text_encoders(part: str) -> bool:
    return not is_text_encoder(part)


def load_pipeline(source: str) -> Any:
    """A pipeline of FAMILIES in float32, from a folder or the hub. Raises ModelError in one sentence.

    Its scheduler is the DDIM scheduler for the process that the checkpoint's own scheduler describes
    (`models.schedulers`). Where a component has no plain weights, those of its only variant are loaded.
    """
    return _pipeline(source, every_part)


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
    folder = local_folder(source) or fetched(source, is_text_encoder)
    try:
        index = read_json(folder / INDEX)
        parts = family_in(index).parts
        with quiet():
            return {part: _network(folder, part, parts[part]) for part in present_parts(index) if is_text_encoder(part)}
    except ModelError as error:
        raise ModelError(f"cannot load the model {source}: {error}") from error


def _pipeline(source: str, weights: Weights) -> Any:
    folder = local_folder(source) or fetched(source, weights)
    try:
        with quiet():
            return _assembled(folder, weights)
    except ModelError as error:
        raise ModelError(f"cannot load the model {source}: {error}") from error


def _assembled(folder: Path, weights: Weights) -> Any:
    index = read_json(folder / INDEX)
    family = family_in(index)
    present = present_parts(index)
    for part in present:
        _require_class(index.get(part), part, family.parts[part].__name__)
    named = index.get("scheduler")
    if named is None or not _is_entry(named):
        raise ModelError(f"model_index.json names no scheduler, but {named!r}: expected a library and a class")
    parts: dict[str, Any] = dict.fromkeys(family.optional) | {"scheduler": family.scheduler(folder, named[1])}
    networks = [part for part in present if is_network(family.parts[part])]
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
