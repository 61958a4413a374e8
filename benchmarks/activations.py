"""What a training pass with LoRA keeps for its backward pass, counted at full size on PyTorch's meta device.

    python benchmarks/activations.py ["Stable Diffusion 3 medium" FLUX.1-dev ...]   # nothing is downloaded

One row through the network in float32, LoRA of rank 4, every tensor that autograd saves (`saved_tensors_hooks`), each
storage once, without the weights. Attention saves its three inputs and its output, as the fused kernels do. With
gradient checkpointing: what the blocks are given, and what one block saves while it is computed again, the largest.
Both as shares of the outputs of all layers, on which the estimate of `--dry-run` builds. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from family_configs import MODELS, Published, write

from tastemaker.models import load_meta_model
from tastemaker.models.tuning import Tuning
from tastemaker.training.preflight import counted_outputs

CHOSEN = ("Stable Diffusion 1.5", "Stable Diffusion 3 medium", "FLUX.1-dev", "Z-Image")


class Storages:
    """Storages that were seen, each counted once."""

    def __init__(self, without: Iterator[Tensor]) -> None:
        self._weights = {tensor.untyped_storage()._cdata for tensor in without}
        self._seen: dict[int, tuple[Any, int]] = {}

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights:
            # Kept, so that no other storage takes its place in memory.
            self._seen[storage._cdata] = (storage, storage.nbytes())
        return tensor

    @property
    def elements(self) -> int:
        """Of float32."""
        return sum(size for _, size in self._seen.values()) // 4


class Attention(torch.autograd.Function):
    """Stands for a fused kernel: saves its inputs and its output."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("nothing goes back on the meta device")


def attention(query: Tensor, key: Tensor, value: Tensor, *others: Any, **options: Any) -> Tensor:
    return Attention.apply(query, key, value)


@contextmanager
def saved(storages: Storages) -> Iterator[None]:
    with torch.autograd.graph.saved_tensors_hooks(storages.add, lambda tensor: tensor):
        yield


def count(model: Published) -> dict[str, float]:
    """Elements of the layers' outputs, and what is kept of them with and without gradient checkpointing."""
    with tempfile.TemporaryDirectory() as folder:
        found = load_meta_model(str(write(model, Path(folder))))
    cond = found.encode(["a cat"], 1.0)
    x, t = torch.zeros(1, *found.latent_shape, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")
    with counted_outputs(found.network) as outputs, torch.no_grad():
        found.predict(x, t, cond)
    found.tune(Tuning(rank=4), 0)
    network: Any = found.network
    with mock.patch("torch.nn.functional.scaled_dot_product_attention", attention):
        whole = Storages(network.parameters())
        with saved(whole):
            kept = found.predict(x, t, cond)
        given, blocks = Storages(network.parameters()), []

        def block(run: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            for argument in (*arguments, *options.values()):
                if isinstance(argument, Tensor):
                    given.add(argument)
            inside = Storages(network.parameters())
            with saved(inside):
                out = run(*arguments, **options)
            blocks.append(inside.elements)
            return out

        network.enable_gradient_checkpointing(gradient_checkpointing_func=block)
        network.train()
        with saved(given):
            kept = found.predict(x, t, cond)
    del kept
    total = sum(outputs)
    return {
        "outputs": total,
        "saved": round(whole.elements / total, 3),
        "checkpointing, kept": round(given.elements / total, 3),
        "checkpointing, largest block": round(max(blocks) / total, 3),
        "blocks": len(blocks),
    }


if __name__ == "__main__":
    names = sys.argv[1:] or CHOSEN
    print(json.dumps({model.name: count(model) for model in MODELS if model.name in names}, indent=1))
