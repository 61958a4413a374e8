"""Ranges of settings, declared by annotations such as `Annotated[float, Gt(0)]` and checked in one place.

The declarations are those of the package annotated-types, which pydantic and hypothesis read too.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from annotated_types import BaseMetadata, Ge, Gt, Le, Lt

from tastemaker.errors import ConfigError


def check_constraints(settings: Any, prefix: str = "") -> None:
    """Raises ConfigError for the first number of a dataclass, or of those in it, that is out of its declared range.

    `prefix` is what its fields are called by, such as `algorithm.`. None is within every range of a field that may be
    none.
    """
    for name, (hint, limits) in _declared(type(settings)).items():
        value = getattr(settings, name)
        if dataclasses.is_dataclass(value):
            check_constraints(value, f"{prefix}{name}.")
        elif limits and isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{prefix}{name} is {value}, but must be finite")
        elif limits and value is not None and not all(_holds(limit, value) for limit in limits):
            none = ", or none" if types.NoneType in _members(hint) else ""
            raise ConfigError(f"{prefix}{name} is {value}, but {range_text(limits)}{none}")


def range_text(limits: tuple[BaseMetadata, ...]) -> str:
    """A range as a person says it: `must be greater than 0`, `must lie in [0, 1)`."""
    low = next((limit for limit in limits if isinstance(limit, (Gt, Ge))), None)
    high = next((limit for limit in limits if isinstance(limit, (Lt, Le))), None)
    if low is not None and high is not None:
        left = f"({low.gt}" if isinstance(low, Gt) else f"[{low.ge}"
        right = f"{high.lt})" if isinstance(high, Lt) else f"{high.le}]"
        return f"must lie in {left}, {right}"
    if isinstance(low, Gt):
        return f"must be greater than {low.gt}"
    if isinstance(low, Ge):
        return "must not be negative" if low.ge == 0 else f"must be at least {low.ge}"
    if isinstance(high, Lt):
        return f"must be less than {high.lt}"
    assert isinstance(high, Le)
    return f"must be at most {high.le}"


def _holds(limit: BaseMetadata, value: Any) -> bool:
    """Whether a value is within a limit."""
    if isinstance(limit, Gt):
        return value > limit.gt
    if isinstance(limit, Ge):
        return value >= limit.ge
    if isinstance(limit, Lt):
        return value < limit.lt
    assert isinstance(limit, Le)
    return value <= limit.le


@cache
def _declared(cls: type) -> dict[str, tuple[Any, tuple[BaseMetadata, ...]]]:
    """The fields of a dataclass with their types and limits. Raises TypeError for a constraint unknown here."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = {}
    for field in dataclasses.fields(cls):
        limits = tuple(mark for mark in _marks(hints[field.name]) if isinstance(mark, BaseMetadata))
        if unknown := [limit for limit in limits if not isinstance(limit, (Gt, Ge, Lt, Le))]:
            raise TypeError(f"{cls.__name__}.{field.name} declares {unknown[0]}, which constraints.py does not check")
        found[field.name] = (hints[field.name], limits)
    return found


def _marks(hint: Any) -> list[Any]:
    """What a type is annotated with, by itself or as a member of a union."""
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        return [*_marks(inner), *marks]
    return [mark for member in get_args(hint) for mark in _marks(member)] if _is_union(hint) else []


def _members(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Annotated:
        return _members(get_args(hint)[0])
    return tuple(inner for member in get_args(hint) for inner in _members(member)) if _is_union(hint) else (hint,)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)
