"""What was trained, put on a network: an adapter to sample with or to start from, adapters under it, a whole network.

As in `adapter_files`, in full or not at all: what is on the network is compared with what the file has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from peft import inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from tastemaker.errors import ModelError
from tastemaker.models import lora
from tastemaker.models.adapter_files import (
    Frozen,
    acting,
    find_adapter,
    frozen_under,
    lora_config,
    read,
    require_same,
    tensors,
)
from tastemaker.models.library_logging import quiet
from tastemaker.models.lora import adaptable, remove
from tastemaker.models.mixing import Adapter, Factors, product
from tastemaker.models.tuning import ATTENTION, Tuning


def apply(network: Any, given: Path) -> None:
    """Puts what was trained on `network`: an adapter, with those that its file says are under it, or all weights.

    They do not learn.

    Raises ModelError, with the network as it was, where it does not fit in full.
    """
    found = find_adapter(given)
    if found.is_dir():
        _apply_whole(network, found)
    elif any(isinstance(module, BaseTunerLayer) for module in network.modules()):
        raise ModelError(f"the model has an adapter already: take it off before {found} is put on")
    else:
        adapter = read(found, network)
        merge(network, frozen_under(found))
        _put_on(adapter, network, found)


def start(network: Any, tuning: Tuning, seed: int) -> None:
    """`lora.tune`, with an adapter that begins as the one in `tuning.start_from`: its layers, ranks, scales and values.

    Where `tuning.alpha` is given, scales are alpha / rank, and B takes up what they differ. Raises ModelError where the
    file's layers or rank are not those of `tuning`, where these are given, or where it is on top of other adapters.
    """
    assert tuning.start_from is not None
    file = find_adapter(tuning.start_from)
    found = read(file, network)
    _require_meant(found, tuning, network)
    under = [(str(Path(path).expanduser().absolute()), weight) for path, weight in tuning.frozen]
    if list(frozen_under(file)) not in ([], under):
        names = [path for path, _ in frozen_under(file)]
        raise ModelError(
            f"tuning.start_from is {tuning.start_from}, which was trained on top of {', '.join(names)}: set "
            "tuning.frozen_adapters to these, with the weights that they had"
        )
    begin = started(found, tuning)
    lora.tune(network, tuning, seed, lora_config(begin))
    own = acting(network)
    if own.keys() != begin.keys():
        raise ModelError(f"peft adapts other layers than the adapter {file} has: this is a bug")
    with torch.no_grad():
        for name, factors in own.items():
            factors.a.copy_(begin[name].a)
            factors.b.copy_(begin[name].b)


def started(found: Adapter, tuning: Tuning) -> Adapter:
    """An adapter with the scale that it is trained with, and B of the same output."""
    if tuning.alpha is None:
        return found
    return {
        name: Factors(f.a, f.b * (f.scale * f.rank / tuning.alpha), tuning.alpha / f.rank) for name, f in found.items()
    }


def _require_meant(found: Adapter, tuning: Tuning, network: nn.Module) -> None:
    """Raises ModelError where rank or targets were given, and are not the file's."""
    given = f"tuning.start_from is {tuning.start_from}"
    ranks = sorted({factors.rank for factors in found.values()})
    if tuning.rank not in (ranks[0], Tuning.rank) or (tuning.rank != Tuning.rank and len(ranks) > 1):
        raise ModelError(
            f"{given}, whose rank is {', '.join(map(str, ranks))}, but tuning.rank is {tuning.rank}: leave it out, "
            "since the adapter's own is used"
        )
    if tuning.targets == ATTENTION:
        return
    meant = {name for name in adaptable(network) if any(f".{name}".endswith(f".{one}") for one in tuning.targets)}
    if meant != found.keys():
        name = min(meant ^ found.keys())
        has, lacks = ("the file", "tuning.targets") if name in found else ("tuning.targets", "the file")
        raise ModelError(
            f"{given}, but {has} adapts the layer {name} and {lacks} does not: leave tuning.targets out, since the "
            "adapter's own layers are used"
        )


def _put_on(adapter: Adapter, network: Any, file: Path) -> None:
    state = tensors(adapter)
    try:
        inject_adapter_in_model(lora_config(adapter), network, state_dict=state, low_cpu_mem_usage=True)
        set_peft_model_state_dict(network, state, low_cpu_mem_usage=True)
        on = acting(network)
        require_same(on, adapter, f"the model after {file} was put on")
    except Exception:
        remove(network)
        raise
    for value in tensors(on).values():
        value.requires_grad_(False)


def _apply_whole(network: Any, folder: Path) -> None:
    kind = type(network)
    refused = f"the network in {folder} does not fit the model"
    try:
        with quiet():
            config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if config.get("_class_name") != kind.__name__:
                raise ModelError(f"{refused}: it is a {config.get('_class_name')}, and the model's a {kind.__name__}")
            loaded, info = kind.from_pretrained(
                folder, output_loading_info=True, use_safetensors=True, local_files_only=True
            )
    except ModelError:
        raise
    except Exception as error:  # diffusers, safetensors and json each raise their own kinds
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"cannot read the network in {folder}: {type(error).__name__}: {reason}") from error
    ours, theirs = (json.loads(one.to_json_string()) for one in (network, loaded))
    unlike = [
        f"{name} is {theirs.get(name)} there and {ours.get(name)} in the model"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name) and not name.startswith("_") and name != "sample_size"
    ]
    unlike += [f"{name} is one of its {what.replace('_', ' ')}" for what, names in info.items() for name in names]
    # Where some are missing, they are on no device.
    values = {} if unlike else loaded.state_dict()
    unlike += [f"{name} is not finite" for name, value in values.items() if not value.isfinite().all()]
    if unlike:
        raise ModelError(f"{refused}: {unlike[0]}; give the --model that was trained")
    network.load_state_dict(loaded.state_dict())


def merge(network: nn.Module, frozen: Frozen) -> None:
    """Adds what adapters would add to the network's weights, sum_i w_i s_i B_i A_i, in their own precision.

    Raises ModelError where one of them does not fit, or is itself on top of others; the network is then as it was.
    """
    adapters = [(_alone(path, network), weight) for path, weight in frozen]
    with torch.no_grad():
        for name, layer in adaptable(network).items() if adapters else ():
            weight = cast(Tensor, layer.weight)
            found = [w * product(adapter[name]) for adapter, w in adapters if name in adapter]
            if found and not weight.is_meta:
                whole = weight.double() + torch.stack(found).sum(dim=0).reshape(weight.shape).to(weight.device)
                weight.copy_(whole)


def _alone(path: str, network: nn.Module) -> Adapter:
    if frozen_under(path):
        raise ModelError(
            f"tuning.frozen_adapters has {path}, which was itself trained on top of {frozen_under(path)[0][0]}: name "
            "that before it, and give it from a file without it (`tastemaker export`)"
        )
    return read(path, network)


def weights_under(network: nn.Module, given: str | Path) -> list[tuple[Tensor, Tensor]]:
    """The weights that `merge` would change for an adapter's file, each with a copy of its values."""
    adapters = [read(path, network) for path, _ in frozen_under(given)]
    names = set().union(*adapters) if adapters else set()
    found = {name: cast(Tensor, layer.weight) for name, layer in adaptable(network).items() if name in names}
    return [(weight, weight.detach().clone()) for weight in found.values()]
