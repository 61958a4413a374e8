"""The answer of a reward, of any type, as a tensor of numbers."""

from __future__ import annotations

import inspect

import numpy as np
import torch
from torch import Tensor

from tastemaker.errors import RewardError


def numbers(answer: object, name: str, count: int) -> Tensor:
    """The answer of the reward `name` as a real tensor, of its own shape; with its graph where it has one.

    Tensors of any real dtype, numbers of Python and numpy, arrays, pandas' series, and lists of any of these; masked
    and missing values are NaN. Raises RewardError, which says that `count` numbers are expected, for anything else.
    """
    try:
        if isinstance(answer, Tensor):
            return _real(answer)
        if isinstance(answer, (list, tuple)) and any(isinstance(value, Tensor) for value in answer):
            # One by one, since np.asarray would lose their graphs.
            values = [_real(value) if isinstance(value, Tensor) else _array(value) for value in answer]
            return torch.stack([value.to(values[0].device, torch.float64) for value in values])
        return _array(answer)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        if inspect.iscoroutine(answer):
            answer.close()  # otherwise Python warns that it was never awaited
            raise RewardError(
                f"the reward {name} is an async function: make it a plain one that waits itself (asyncio.run)"
            ) from error
        kind = "a generator" if inspect.isgenerator(answer) else type(answer).__name__
        raise RewardError(f"the reward {name} returned {kind}, but must return {count} numbers ({error})") from error


def _real(values: Tensor) -> Tensor:
    if values.is_complex():
        raise TypeError("complex numbers have no order")
    if values.is_meta:
        raise TypeError("a tensor on the meta device has no values")
    return values.to_dense() if values.layout is not torch.strided else values


def _array(answer: object) -> Tensor:
    found = np.asarray(np.ma.getdata(answer) if isinstance(answer, np.ma.MaskedArray) else answer)
    if found.dtype.kind == "O":
        texts = [value for value in found.flat if isinstance(value, (str, bytes)) or value is None]
        if texts or not found.ndim:
            raise TypeError(f"{type(texts[0] if texts else answer).__name__} is no number")
    elif found.dtype.kind not in "biuf":
        raise TypeError(f"values of numpy's type {found.dtype} are no real numbers")
    with np.errstate(all="ignore"):
        values = np.array(found, dtype=np.float64)
    if isinstance(answer, np.ma.MaskedArray):
        values[np.ma.getmaskarray(answer)] = np.nan
    return torch.from_numpy(values)
