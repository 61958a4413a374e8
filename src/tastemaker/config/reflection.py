"""What the config file and the flags read off the config dataclasses: their fields, types and variants."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from functools import cache
from typing import Any, Union, get_args, get_origin

from tastemaker.errors import ConfigError

RENAMED = {
    "anchor.pictures": "prior_preservation.images", "anchor": "prior_preservation",
    "sampling.size": "sampling.height and sampling.width", "pairs.source": "pairs.sources",
    "evaluation.watch": "early_stop.metric", "evaluation.fall": "early_stop.min_delta",
}  # fmt: skip
"""Settings and sections that had another name in an earlier version, with their present one."""


def present_name(setting: str) -> str | None:
    """The present name of a setting such as `anchor.weight`; None if it was not renamed."""
    section, dot, rest = setting.partition(".")
    return RENAMED.get(setting) or (f"{RENAMED[section]}{dot}{rest}" if section in RENAMED else None)


@cache
def field_types(cls: type) -> dict[str, Any]:
    """Resolved annotations of a dataclass's fields, in order, class variables left out."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def union_members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint alone; `Annotated` is looked through, also of a member."""
    if get_origin(hint) is typing.Annotated:
        return union_members(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(inner for member in get_args(hint) for inner in union_members(member))
    return (hint,)


def dataclass_members(hint: Any) -> tuple[type, ...]:
    """The dataclasses among a hint's union members: more than one where a section is a choice, as of algorithms."""
    return tuple(m for m in union_members(hint) if isinstance(m, type) and dataclasses.is_dataclass(m))


def variant_name(cls: type) -> str | None:
    """The `name` by which a file picks this dataclass among others: a class variable, not a field."""
    name = getattr(cls, "name", None)
    return name if isinstance(name, str) and "name" not in field_types(cls) else None


def require_finite(config: Any, where: str = "") -> None:
    """Raises ConfigError for a number in a dataclass, however deep, that is infinite or not a number."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{where}{field.name}"
        if dataclasses.is_dataclass(value):
            require_finite(value, f"{name}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{name} is {number}, but must be finite")
