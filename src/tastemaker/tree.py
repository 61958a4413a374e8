"""select, concat and to for any dataclass of tensors, however deep.

A field whose rows are not those of the whole, such as the indices of the sampler steps that all images share, is
declared by `field(metadata=SHARED)`: it stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

SHARED = {"tastemaker.shared": True}
"""Metadata of a field that all rows share: `field(metadata=SHARED)`."""


def select(value: T, rows: Tensor | slice) -> T:
    """The given rows of every tensor [N,...] in a dataclass: indices [M], a mask [N] bool, or a slice."""
    return _mapped(value, lambda tensor: tensor[rows], keep_shared=True)


def to(value: T, *args: Any, **options: Any) -> T:
    """Every tensor in a dataclass after `Tensor.to(*args, **options)`, the shared ones too."""
    return _mapped(value, lambda tensor: tensor.to(*args, **options), keep_shared=False)


def zeros(value: T, count: int) -> T:
    """`count` rows of zeros in place of every tensor [N,...]."""
    return _mapped(value, lambda tensor: tensor.new_zeros(count, *tensor.shape[1:]), keep_shared=True)


def concat(parts: Sequence[T]) -> T:
    """Dataclasses of one type as one, their tensors joined along the first dimension.

    Raises ValueError for no parts, for a shared field that differs between parts, and for one that some parts lack.
    """
    if not parts:
        raise ValueError("there is nothing to concatenate")
    first: Any = parts[0]
    changes: dict[str, Any] = {}
    for item in fields(first):
        values = [getattr(part, item.name) for part in parts]
        if _is_shared(item):
            if not all(_same(values[0], other) for other in values[1:]):
                raise ValueError(f"{type(first).__name__}.{item.name} is shared by all rows, but differs between parts")
            continue
        changes[item.name] = _joined(f"{type(first).__name__}.{item.name}", values)
    return replace(first, **changes)


def _joined(name: str, values: list[Any]) -> Any:
    if all(value is None for value in values):
        return None
    if any(value is None for value in values):
        raise ValueError(f"{name} is missing in some of the parts")
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    if is_dataclass(values[0]):
        return concat(values)
    if isinstance(values[0], Mapping):
        return {key: _joined(f"{name}[{key!r}]", [value.get(key) for value in values]) for key in values[0]}
    raise ValueError(f"{name} is a {type(values[0]).__name__}, which has no rows: declare it by field(metadata=SHARED)")


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool((one == other).all())
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return type(one) is type(other) and not isinstance(one, Tensor) and bool(one == other)


def _mapped(value: Any, change: Callable[[Tensor], Tensor], *, keep_shared: bool) -> Any:
    changes: dict[str, Any] = {}
    for item in fields(value):
        if keep_shared and _is_shared(item):
            continue
        changes[item.name] = _changed(getattr(value, item.name), change, keep_shared=keep_shared)
    return replace(value, **changes)


def _changed(found: Any, change: Callable[[Tensor], Tensor], *, keep_shared: bool) -> Any:
    if isinstance(found, Tensor):
        return change(found)
    if is_dataclass(found) and not isinstance(found, type):
        return _mapped(found, change, keep_shared=keep_shared)
    if isinstance(found, Mapping):
        return {key: _changed(inner, change, keep_shared=keep_shared) for key, inner in found.items()}
    return found


def _is_shared(item: Any) -> bool:
    return "tastemaker.shared" in item.metadata
