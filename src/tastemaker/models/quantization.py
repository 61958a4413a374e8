"""Frozen base weights in 4 or 8 bits (bitsandbytes), under adapters that stay in float32 (QLoRA)."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tastemaker.errors import ConfigError
from tastemaker.models.tuning import BaseWeights


def quantize(network: Any, kind: BaseWeights) -> int:
    """Replaces the weights of all linear layers by quantized ones, on the device that they are on; `none` does nothing.

    `nf4`: 4-bit NormalFloat, in blocks of 64 with a float32 scale each (Dettmers et al. 2023). `int8`: rows of 8 bits
    (LLM.int8, Dettmers et al. 2022). Convolutions, biases and norms stay as they are. Returns the number of layers.
    Raises ConfigError where bitsandbytes is missing.
    """
    if kind == "none":
        return 0
    bnb = require_bitsandbytes(kind)
    found = [(name, layer) for name, layer in network.named_modules() if type(layer) is nn.Linear]
    for name, layer in found:
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, _four(bnb, layer) if kind == "nf4" else _eight(bnb, layer))
    # By these peft knows which of its adapters such layers need.
    network.is_loaded_in_4bit, network.is_loaded_in_8bit = kind == "nf4", kind == "int8"
    return len(found)


def require_bitsandbytes(kind: BaseWeights) -> Any:
    """Its layers. Raises ConfigError where they are needed and missing."""
    if kind == "none":
        return None
    try:
        import bitsandbytes.nn  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"tuning.base_weights is {kind}, which needs bitsandbytes ({error}): pip install bitsandbytes, or set it "
            "to none"
        ) from error
    return bitsandbytes.nn


def _four(bnb: Any, layer: nn.Linear) -> nn.Module:
    weight = layer.weight.detach()
    made = bnb.Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=weight.dtype,
        compress_statistics=False, quant_type="nf4", device="meta",
    )  # fmt: skip
    # On a CPU with AVX-512 it would pack the weights anew in the first pass without a graph, with scales rounded to
    # bfloat16 and for widths of whole blocks alone.
    made.support_avx512bf16_for_cpu = False
    made.weight = bnb.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=False, module=made)
    return _placed(made, layer)


def _eight(bnb: Any, layer: nn.Linear) -> nn.Module:
    made = bnb.Linear8bitLt(
        layer.in_features, layer.out_features, bias=layer.bias is not None, has_fp16_weights=False, threshold=0.0,
        device="meta",
    )  # fmt: skip
    made.weight = bnb.Int8Params(layer.weight.detach(), requires_grad=False, has_fp16_weights=False)
    return _placed(made, layer)


def _placed(made: Any, layer: nn.Linear) -> nn.Module:
    # bitsandbytes answers in the precision of the input, and torch.autocast does not know its layers: without this
    # they would put out float32 where ordinary layers put out half precision, and norms refuse that on a CPU.
    made.register_forward_pre_hook(partial(_cast, layer.weight.dtype))
    made.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
    return made.to(layer.weight.device).train(layer.training)


def _cast(dtype: torch.dtype, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    first, *rest = inputs
    return (first.to(dtype), *rest)


def quantized_bytes(parameters: int, kind: Literal["nf4", "int8"]) -> float:
    """What weights of linear layers take: 4 bits and a float32 for each 64 of them, or 8 bits."""
    return parameters * (0.5 + 4 / 64 if kind == "nf4" else 1.0)
