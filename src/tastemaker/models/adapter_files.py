"""Adapters as files: diffusers' form, and peft's own for networks that diffusers has no loader for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor

from tastemaker.errors import ModelError
from tastemaker.models.lora import PEFT_WEIGHTS, WEIGHTS, write_lora, write_peft
from tastemaker.models.mixing import Adapter, Factors

_FILES = (WEIGHTS, PEFT_WEIGHTS, "adapter_config.json")


def form(folder: Path) -> str:
    """Name of the file with the folder's adapter. Raises ModelError for a whole network."""
    for name in (WEIGHTS, PEFT_WEIGHTS):
        if (folder / name).is_file():
            return name
    raise ModelError(
        f"{folder} holds a whole network (tuning.mode = full), but only adapters can be mixed or switched: "
        "train with tuning.mode = lora"
    )


def read(folder: Path) -> Adapter:
    """The adapter of a folder, on the CPU, with the scales that its metadata say. Raises ModelError."""
    try:
        return _diffusers(folder) if form(folder) == WEIGHTS else _peft(folder)
    except ModelError:
        raise
    except Exception as error:  # diffusers, peft and safetensors each raise their own kinds
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"cannot read the adapter in {folder}: {type(error).__name__}: {reason}") from error


def write(adapter: Adapter, folder: Path, name: str) -> None:
    """Writes an adapter of one scale and rank in the form of the file `name`, as training would have."""
    first = next(iter(adapter.values()))
    # peft annotates lora_alpha as int, but multiplies by it: any number will do.
    alpha: Any = first.scale * first.rank
    config = LoraConfig(r=first.rank, lora_alpha=alpha, target_modules=sorted(adapter))
    state = {f"{layer}.lora_A.weight": factors.a for layer, factors in adapter.items()}
    state |= {f"{layer}.lora_B.weight": factors.b for layer, factors in adapter.items()}
    (write_lora if name == WEIGHTS else write_peft)(state, config, folder)


def copy(source: Path, folder: Path) -> None:
    """The same adapter, bit for bit."""
    folder.mkdir(parents=True)
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _diffusers(folder: Path) -> Adapter:
    loaded: Any = StableDiffusionLoraLoaderMixin.lora_state_dict(
        str(folder), weight_name=WEIGHTS, return_lora_metadata=True, local_files_only=True
    )
    state, alphas, metadata = loaded
    if "lora_A" not in next(iter(state)):
        state = convert_unet_state_dict_to_peft(state)
    config = {name.removeprefix("unet."): value for name, value in (metadata or {}).items()}
    # Files from elsewhere have an alpha for each layer, or none, which means a scale of 1.
    renamed = convert_unet_state_dict_to_peft(alphas or {})
    own = {_layer(name).removesuffix(".alpha").split(".lora_")[0]: float(value) for name, value in renamed.items()}
    return _adapter(folder, {_layer(name): value for name, value in state.items()}, config, own)


def _peft(folder: Path) -> Adapter:
    config = LoraConfig.from_pretrained(str(folder)).to_dict()
    return _adapter(folder, {_layer(name): value for name, value in load_file(folder / PEFT_WEIGHTS).items()}, config)


def _layer(name: str) -> str:
    """Without what the libraries put before a layer's own name."""
    return name.removeprefix("base_model.model.").removeprefix("unet.")


def _adapter(
    folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], own: Mapping[str, float] | None = None
) -> Adapter:
    ends = (".lora_A.weight", ".lora_B.weight")
    odd = [name for name in state if not name.endswith(ends) or name.startswith("text_encoder")]
    if odd or not state:
        found = odd[0] if odd else "nothing"
        raise ModelError(
            f"the adapter in {folder} has {found}, but only plain low-rank adapters of the U-Net can be mixed"
        )
    layers = sorted({name.removesuffix(ends[0]).removesuffix(ends[1]) for name in state})
    made = {}
    for layer in layers:
        a, b = (state[layer + end] for end in ends)
        made[layer] = Factors(a, b, _scale(config, own or {}, layer, a.shape[0]))
    return made


def _scale(config: Mapping[str, Any], own: Mapping[str, float], layer: str, rank: int) -> float:
    if not config:
        return own.get(layer, rank) / rank
    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), layer), config["lora_alpha"])
    return alpha / (sqrt(rank) if config.get("use_rslora") else rank)
