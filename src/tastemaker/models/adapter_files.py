"""Adapters as files: diffusers' form, and peft's own for networks that diffusers has no loader for.

An adapter is read, saved and applied in full or not at all: every tensor of a file belongs to a layer of the network,
and what was put on a network or on disk is compared with what was meant to be there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isclose, isfinite, sqrt
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.loaders.lora_pipeline import (
    Flux2LoraLoaderMixin,
    FluxLoraLoaderMixin,
    SD3LoraLoaderMixin,
    StableDiffusionLoraLoaderMixin,
    ZImageLoraLoaderMixin,
)
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tastemaker.errors import ConfigError, ModelError
from tastemaker.models import adapter_names
from tastemaker.models.library_logging import quiet
from tastemaker.models.lora import PEFT_WEIGHTS, WEIGHTS, adaptable, weight_shape
from tastemaker.models.mixing import Adapter, Factors

Frozen = Sequence[tuple[str, float]]
"""Adapters that do not learn, by path, each with its weight."""
FROZEN = "tastemaker_frozen_adapters"
"""Of a file's metadata: the adapters under it."""
ENDS = (".lora_A.weight", ".lora_B.weight")
"""Of the names of a layer's factors, as peft has them."""
_LOADERS: dict[str, Any] = {
    "SD3Transformer2DModel": SD3LoraLoaderMixin, "FluxTransformer2DModel": FluxLoraLoaderMixin,
    "ZImageTransformer2DModel": ZImageLoraLoaderMixin, "Flux2Transformer2DModel": Flux2LoraLoaderMixin,
}  # fmt: skip
"""Loaders of transformers' pipelines, by the transformer's class."""
_KNOWN = re.compile(r"(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)\.weight$|\.alpha$")
_PREFIX = re.compile(r"^(base_model\.model\.)?((unet|transformer|diffusion_model)\.)?")
"""What the libraries put before a layer's own name."""
_HARMLESS = {
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "fan_in_fan_out",
    "inference_mode", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying", "runtime_config",
}  # fmt: skip
"""Fields of peft's LoraConfig of which the factors, ranks and scales are all that acts."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to initialise by which peft also changes the base model's weights."""


def find_adapter(given: str | Path) -> Path:
    """What was trained: an adapter's .safetensors file, or the folder of a whole network.

    `given` is one of these, or the folder that it is in, or a run. Raises ConfigError where there is none, or two.
    """
    path = Path(given)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ConfigError(f"{path} is no .safetensors file: save the adapter as one, since no other kind is read")
        return path
    if (path / "diffusion_pytorch_model.safetensors").is_file() and (path / "config.json").is_file():
        return path
    for folder in (path, path / "adapter", path / "model"):
        named = [folder / name for name in (WEIGHTS, PEFT_WEIGHTS) if (folder / name).is_file()]
        whole = [folder / name for name in ("unet", "transformer") if (folder / name).is_dir()]
        if not named and whole:
            return whole[0]
        found = named or sorted(folder.glob("*.safetensors"))
        if len(found) > 1:
            raise ConfigError(f"{folder} has the adapters {found[0].name} and {found[1].name}: give one of the files")
        if found:
            return found[0]
    pickled = [file for file in path.glob("*") if file.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickled:
        raise ConfigError(
            f"there is no adapter in {path} but {pickled[0].name}, which is no .safetensors file: save it as one"
        )
    raise ConfigError(
        f"there is no adapter in {path}: expected a finished run (finish one by `tastemaker resume`), or a folder with "
        f"{WEIGHTS} or {PEFT_WEIGHTS}"
    )


def require_adapter(found: Path) -> Path:
    """`found`, if it is an adapter's file. Raises ModelError for a whole network."""
    if found.is_dir():
        raise ModelError(
            f"{found.parent} holds a whole network (tuning.mode = full), but only adapters can be mixed or switched: "
            "train with tuning.mode = lora"
        )
    return found


def read(given: str | Path, network: nn.Module) -> Adapter:
    """An adapter of `network`, in float32 on the CPU, with the scales of its file.

    Reads the names of diffusers, peft and kohya, whose files have an alpha for each layer, or none, which means a scale
    of 1. Raises ModelError where the file is damaged, has anything else than the factors of layers that the network
    has, or has them in other shapes.
    """
    file = require_adapter(find_adapter(given))
    try:
        return _read(file, network)
    except ModelError:
        raise
    except Exception as error:  # safetensors, json, re and peft each raise their own kinds
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"cannot read the adapter {file}: {type(error).__name__}: {reason}") from error


def _read(file: Path, network: nn.Module) -> Adapter:
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        config = _config(file, opened.metadata() or {})
    _require_plain(file, tensors, config)
    layers = adaptable(network)
    tensors = adapter_names.to_layers(tensors, network, layers)
    kohya = {f"lora_unet_{name.replace('.', '_')}": name for name in layers}
    state = convert_unet_state_dict_to_peft({_renamed(name, kohya): value for name, value in tensors.items()})
    alphas = {name.removesuffix(".alpha"): value.item() for name, value in state.items() if name.endswith(".alpha")}
    names = {name.removesuffix(end) for name in state for end in ENDS if name.endswith(end)} | alphas.keys()
    lone = [name + end for name in sorted(names) for end in ENDS if name + end not in state]
    if lone or len(state) != len(tensors) or not names:
        wrong = f"lacks {lone[0]}" if lone else "names a layer twice" if names else "has no factors"
        raise ModelError(f"the adapter {file} {wrong}, but must have both factors of each of its layers, once")
    return {name: _factors(file, name, state, config, alphas.get(name), layers) for name in sorted(names)}


def _config(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What peft's LoraConfig says of the file; empty for files of others."""
    if file.name == PEFT_WEIGHTS:
        text = (file.parent / "adapter_config.json").read_text(encoding="utf-8")
    else:
        text = metadata.get(LORA_ADAPTER_METADATA_KEY) or "{}"
    return {name.removeprefix("unet.").removeprefix("transformer."): v for name, v in json.loads(text).items()}


def _require_plain(file: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Raises ModelError where there is more to the adapter than two factors and a scale for each layer."""
    text = [name for name in tensors if name.startswith(("text_encoder", "lora_te"))]
    odd = [name for name in tensors if not _KNOWN.search(name)]
    default: dict[str, Any] = LoraConfig().to_dict()
    fields = [
        f"{name}={value}"
        for name, value in config.items()
        if value and value != default.get(name) and name not in _HARMLESS and not name.startswith("text_encoder")
    ]
    if str(config.get("init_lora_weights")).startswith(_CHANGES_BASE):
        fields.append(f"init_lora_weights={config['init_lora_weights']}")
    if text or odd or fields:
        found = (text or odd or fields)[0]
        raise ModelError(
            f"the adapter {file} has {found}, but only plain low-rank adapters of the network are read "
            "(LoRA without text encoder, biases, DoRA, LoHa or the like)"
        )


def _renamed(name: str, kohya: Mapping[str, str]) -> str:
    """Without its prefix, and with peft's names instead of kohya's."""
    stem, _, end = _PREFIX.sub("", name).partition(".")
    name = f"{kohya.get(stem, stem)}.{end}"
    return name.replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B.")


def _factors(
    file: Path,
    name: str,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    alpha: float | None,
    layers: Mapping[str, nn.Module],
) -> Factors:
    """One layer's. Raises ModelError where they do not fit the network's."""
    a, b = (state[name + end] for end in ENDS)
    if name not in layers:
        raise ModelError(
            f"the adapter {file} adapts the layer {name}, which the model does not have: give the adapter's own --model"
        )
    weight = weight_shape(layers[name])
    rank = len(a) if a.ndim else 0
    shapes = (rank, *weight[1:]), (weight[0], rank, *[1] * (len(weight) - 2))
    if (tuple(a.shape), tuple(b.shape)) != shapes or not rank:
        raise ModelError(
            f"the adapter {file} has factors of the shapes {list(a.shape)} and {list(b.shape)} at the layer {name}, "
            f"whose weight in the model is {list(weight)}: give the adapter's own --model"
        )
    scale = _scale(config, name, rank) if alpha is None else alpha / rank
    floats = a.is_floating_point() and b.is_floating_point()
    a, b = a.float(), b.float()
    if not (floats and a.isfinite().all() and b.isfinite().all()):
        raise ModelError(f"the adapter {file} has values that are no finite floats at the layer {name}: it is damaged")
    if not isfinite(scale):
        raise ModelError(f"the adapter {file} has the scale {scale} at the layer {name}: it is damaged")
    return Factors(a, b, scale)


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """lora_alpha / r by peft's settings, whose rank must be the factors'; 1 without any."""
    if not config:
        return 1.0
    config = LoraConfig().to_dict() | dict(config)
    ranks, alphas = config["rank_pattern"] or {}, config["alpha_pattern"] or {}
    said = ranks.get(get_pattern_key(list(ranks), name), config["r"])
    if said != rank:
        raise ValueError(f"its factors have rank {rank} at the layer {name}, but its settings say {said}")
    alpha = alphas.get(get_pattern_key(list(alphas), name), config["lora_alpha"])
    return alpha / (sqrt(rank) if config["use_rslora"] else rank)


def save(network: Any, folder: Path, frozen: Frozen = ()) -> None:
    """Writes the network's adapter to `folder`, alpha included, with the names of the adapters that are under it.

    The form is that of `StableDiffusionPipeline.load_lora_weights`, or of `peft.PeftModel.from_pretrained` for a
    network that diffusers has no loader for. Raises ModelError where that loader, or `read`, would not put every value
    in its place.
    """
    state = get_peft_model_state_dict(network)  # whole tensors, also where the network's own are sharded
    on = acting(network)
    assert len(state) == 2 * len(on)
    whole = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    adapter = {name: Factors(whole[name + ENDS[0]], whole[name + ENDS[1]], f.scale) for name, f in on.items()}
    _write(adapter, network.peft_config["default"], network, folder, frozen)


def write(adapter: Adapter, network: nn.Module, folder: Path, frozen: Frozen = ()) -> None:
    """`save` of any adapter of the network."""
    _write(adapter, lora_config(adapter), network, folder, frozen)


def _write(adapter: Adapter, config: LoraConfig, network: nn.Module, folder: Path, frozen: Frozen) -> None:
    hollow, state = _hollow(network), tensors(adapter)
    # peft's names throughout: diffusers decides by the first name of a file whether it renames any.
    if isinstance(network, PeftAdapterMixin):
        loader, part = _loader(network)
        layers = {f"{part}_lora_layers": state, f"{part}_lora_adapter_metadata": config.to_dict()}
        loader.save_lora_weights(folder, **layers)
        written, load = folder / WEIGHTS, _load_as_diffusers
    else:
        folder.mkdir(parents=True, exist_ok=True)
        # peft's own files hold the names of its wrapper around a model.
        weights = {f"base_model.model.{name}": value for name, value in state.items()}
        save_file(weights, folder / PEFT_WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(folder))
        written, load = folder / PEFT_WEIGHTS, _load_as_peft
    if frozen:
        _name_frozen(written, frozen)
    require_same(read(written, hollow), adapter, f"the file {written}")
    try:
        # peft draws values, and puts the file's in their place.
        with quiet(), torch.random.fork_rng(devices=[]):
            load(hollow, folder)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"the adapter in {folder} could not be loaded again: {reason}") from error
    require_same(acting(hollow), adapter, "a network that has loaded it")


def _name_frozen(file: Path, frozen: Frozen) -> None:
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata() or {})
    named = [[str(Path(path).expanduser().absolute()), weight] for path, weight in frozen]
    save_file(load_file(file), file, metadata | {FROZEN: json.dumps(named)})


def frozen_under(given: str | Path) -> Frozen:
    """The adapters that an adapter's file says are under it, each with its weight; none of a whole network.

    Raises ModelError where one of them is no longer there.
    """
    file = find_adapter(given)
    if file.is_dir():
        return ()
    try:
        with safe_open(file, "pt") as opened:
            named = json.loads((opened.metadata() or {}).get(FROZEN, "[]"))
        frozen = tuple((str(path), float(weight)) for path, weight in named)
    except Exception as error:  # safetensors and json each raise their own kinds
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"cannot read the adapter {file}: {type(error).__name__}: {reason}") from error
    for path, _ in frozen:
        if not Path(path).exists():
            raise ModelError(
                f"the adapter {file} was trained on top of {path}, which is not there: put it back, or load the "
                "adapter's file with other programs"
            )
    return frozen


def file_digest(given: str | Path) -> str:
    """16 hexadecimal digits of an adapter's file, by its content."""
    return hashlib.sha256(require_adapter(find_adapter(given)).read_bytes()).hexdigest()[:16]


def _load_as_diffusers(network: Any, folder: Path) -> None:
    """What `load_lora_weights` of a pipeline does with its network."""
    loader, part = _loader(network)
    options: dict[str, Any] = {"low_cpu_mem_usage": True}
    state, *alphas, metadata = loader.lora_state_dict(str(folder), return_lora_metadata=True)
    # Drawing values, which takes most of the time, for values not used.
    options["metadata"] = metadata | {f"{part}.init_lora_weights": False}
    if alphas:
        options["network_alphas"] = alphas[0]
    elif loader.__name__ == "FluxLoraLoaderMixin":
        options["network_alphas"] = None
    put_on = loader.load_lora_into_unet if part == "unet" else loader.load_lora_into_transformer
    put_on(state, **{part: network}, **options)


def _loader(network: Any) -> tuple[Any, str]:
    """The loader of a network's pipelines in diffusers, and what they call the network."""
    found = _LOADERS.get(type(network).__name__)
    return (StableDiffusionLoraLoaderMixin, "unet") if found is None else (found, "transformer")


def _load_as_peft(network: Any, folder: Path) -> None:
    PeftModel.from_pretrained(network, str(folder))


def _hollow(network: Any) -> nn.Module:
    """A network of the same layers without an adapter, on the CPU, whose weights take no memory."""
    with torch.device("meta"), quiet():
        made: nn.Module = type(network).from_config(network.config)
    for module in made.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False))
    return made


def acting(network: nn.Module) -> Adapter:
    """The adapter that is on a network."""
    found: dict[str, Any] = {name: m for name, m in network.named_modules() if isinstance(m, BaseTunerLayer)}
    return {
        name: Factors(module.lora_A[active].weight, module.lora_B[active].weight, module.scaling[active])
        for name, module in found.items()
        for active in module.active_adapters
    }


def scales(network: nn.Module) -> dict[str, float]:
    """The scales of the adapter that is on a network, by layer."""
    return {name: factors.scale for name, factors in acting(network).items()}


def require_same(found: Adapter, meant: Adapter, where: str) -> None:
    """Raises ModelError where factors or scales are not those that were meant, bit for bit in the precision there."""
    wrong = [name for name in sorted(found.keys() | meant.keys()) if not _same(found.get(name), meant.get(name))]
    if wrong:
        raise ModelError(
            f"{len(wrong)} of the adapter's {len(meant)} layers would not be loaded as they are ({wrong[0]} differs in "
            f"{where}): choose other tuning.targets, or tuning.mode = full"
        )


def _same(found: Factors | None, meant: Factors | None) -> bool:
    if found is None or meant is None or not isclose(found.scale, meant.scale, rel_tol=1e-12):
        return False
    pairs = ((found.a, meant.a), (found.b, meant.b))
    return all(not one.is_meta and torch.equal(one.cpu(), other.to("cpu", one.dtype)) for one, other in pairs)


def tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Both factors of every layer, by peft's names."""
    return {name + end: x for name, f in adapter.items() for end, x in zip(ENDS, (f.a, f.b), strict=True)}


def lora_config(adapter: Adapter) -> LoraConfig:
    """The config that gives every layer its own rank and scale."""
    ranks: dict[str, Any] = {name: factors.rank for name, factors in adapter.items()}
    # peft annotates lora_alpha as int, but multiplies by it: any number will do.
    alphas: dict[str, Any] = {name: factors.scale * factors.rank for name, factors in adapter.items()}
    (rank, rank_pattern), (alpha, alpha_pattern) = _pattern(ranks), _pattern(alphas)
    return LoraConfig(
        r=rank, lora_alpha=alpha, rank_pattern=rank_pattern, alpha_pattern=alpha_pattern, target_modules=sorted(adapter)
    )


def _pattern(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most frequent of the layers' values, and the others by name; without ^ a name stands for any that ends so."""
    most = Counter(values.values()).most_common(1)[0][0]
    return most, {f"^{name}": value for name, value in values.items() if value != most}
