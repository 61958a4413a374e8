"""Adapters in the forms of other programs: diffusers, kohya's scripts (and what reads their files), and ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn

from tastemaker.errors import ModelError
from tastemaker.models import adapter_files
from tastemaker.models.adapter_names import (
    COMFYUI,
    fused,
    kohya_modules,
    kohya_name,
    naming,
    original_modules,
    rows_of,
)
from tastemaker.models.lora import adaptable
from tastemaker.models.mixing import Adapter, product

Format = Literal["diffusers", "kohya", "comfyui"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def kohya_state(adapter: Adapter, network: nn.Module) -> dict[str, Tensor]:
    """An adapter as kohya's scripts have it: lora_unet_MODULE.lora_down.weight, .lora_up.weight and .alpha.

    ComfyUI, Stable Diffusion web UIs and diffusers read these files too. Raises ModelError for a network that kohya's
    scripts do not have.
    """
    modules = fused(adapter, kohya_modules(network, adapter), rows_of(adaptable(network)))
    return _state({kohya_name(name): factors for name, factors in modules.items()}, "lora_down", "lora_up")


def comfyui_state(adapter: Adapter, network: nn.Module) -> dict[str, Tensor]:
    """An adapter in the names of ComfyUI's own models: diffusion_model.MODULE.lora_A.weight, .lora_B.weight, .alpha.

    Raises ModelError for a network that it does not have, or whose names are not known here.
    """
    modules = fused(adapter, original_modules(network, adapter), rows_of(adaptable(network)))
    return _state({COMFYUI + name: factors for name, factors in modules.items()}, "lora_A", "lora_B")


def _state(modules: Adapter, down: str, up: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, factors in modules.items():
        state[f"{name}.{down}.weight"] = factors.a
        state[f"{name}.{up}.weight"] = factors.b
        state[f"{name}.alpha"] = torch.tensor(factors.scale * factors.rank)
    return state


def kohya_metadata(adapter: Adapter, network: nn.Module) -> dict[str, str]:
    """What programs show of a file, as far as the adapter and its network say: network, rank, alpha, kind of model."""
    known = naming(network)
    assert known is not None
    ranks = {factors.rank for factors in adapter.values()}
    alphas = {factors.scale * factors.rank for factors in adapter.values()}
    return {
        "ss_network_module": known.module,
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic",
        "ss_base_model_version": known.base,
        "ss_v2": str(known.base == "sd_v2"),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{known.architecture}/lora",
    }


def write_state(
    adapter: Adapter,
    network: nn.Module,
    file: Path,
    form: Literal["kohya", "comfyui"],
    dtype: torch.dtype,
    about: Mapping[str, str],
) -> None:
    """Writes the adapter of a network in kohya's or ComfyUI's form, with `about` in the file's metadata.

    Raises ModelError where the network has no such form, or where the file, read again, would not do the same.
    """
    state = kohya_state(adapter, network) if form == "kohya" else comfyui_state(adapter, network)
    stored = {name: value.detach().to("cpu", dtype).contiguous() for name, value in state.items()}
    metadata = {"format": "pt", **kohya_metadata(adapter, network), **about}
    file.write_bytes(serialise(stored, metadata))
    _require_same_products(adapter_files.read(file, network), adapter, file, torch.finfo(dtype).eps)


def _require_same_products(found: Adapter, meant: Adapter, file: Path, eps: float) -> None:
    """Raises ModelError where the file's factors do not give what the adapter's give, to the rounding of its numbers.

    Layers that it has beside the adapter's must add nothing.
    """
    for name in found.keys() | meant.keys():
        is_there = product(found[name]) if name in found else None
        right = product(meant[name]) if name in meant else torch.zeros(())
        difference = right if is_there is None else is_there - right
        if difference.abs().max() > 8 * eps * _magnitude(meant.get(name)):
            raise ModelError(f"the file {file} would not act as the adapter at the layer {name}: this is a bug")


def _magnitude(factors: Any) -> float:
    """The largest sum of absolute products in any entry of B A: what rounding errors are relative to."""
    if factors is None:
        return 0.0
    return float((abs(factors.scale) * factors.b.abs().double().flatten(1) @ factors.a.abs().double().flatten(1)).max())
