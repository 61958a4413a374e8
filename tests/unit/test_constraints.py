"""Declared ranges: each kind of limit at its edge, in nested dataclasses, and in every section of a config."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field, replace
from typing import Annotated

import pytest
from annotated_types import Ge, Gt, Le, Lt, MultipleOf

from tastemaker.config.schema import Config
from tastemaker.constraints import check_constraints
from tastemaker.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    share: Annotated[float, Gt(0), Le(1)] = 0.5
    count: Annotated[int, Ge(2)] | None = None


@dataclass(frozen=True)
class Outer:
    rate: Annotated[float, Gt(0)] = 1.0
    weight: Annotated[float, Ge(0)] = 0.0
    drop: Annotated[float, Ge(0), Lt(1)] = 0.0
    below: Annotated[int, Lt(3)] = 0
    most: Annotated[int, Le(3)] = 0
    free: float = -1.0
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    "settings",
    [
        Outer(),
        Outer(rate=1e-300, drop=0.999, below=2, most=3),
        Outer(inner=Inner(share=1.0, count=2)),
        Outer(free=math.inf),
    ],
)
def test_what_is_within_its_range_passes(settings: Outer):
    check_constraints(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Outer(rate=0.0), "rate is 0.0, but must be greater than 0"),
        (Outer(weight=-1e-9), "weight is -1e-09, but must not be negative"),
        (Outer(drop=1.0), "drop is 1.0, but must lie in [0, 1)"),
        (Outer(below=3), "below is 3, but must be less than 3"),
        (Outer(most=4), "most is 4, but must be at most 3"),
        (Outer(inner=Inner(share=0.0)), "inner.share is 0.0, but must lie in (0, 1]"),
        (Outer(inner=Inner(count=1)), "inner.count is 1, but must be at least 2, or none"),
        (Outer(rate=math.nan), "rate is nan, but must be finite"),
        (Outer(rate=math.inf), "rate is inf, but must be finite"),
    ],
)
def test_what_is_not_says_so(settings: Outer, message: str):
    with pytest.raises(ConfigError) as error:
        check_constraints(settings)
    assert str(error.value) == message
    with pytest.raises(ConfigError) as error:
        check_constraints(settings, "a.")
    assert str(error.value) == f"a.{message}"


def test_a_constraint_that_is_not_checked_is_refused():
    @dataclass(frozen=True)
    class Even:
        count: int = 2

    Even.__annotations__["count"] = Annotated[int, MultipleOf(2)]
    with pytest.raises(TypeError, match=r"Even.count declares MultipleOf"):
        check_constraints(Even())


SECTIONS = [
    ("advantage", "clip", 0.0), ("advantage", "percentile", 1.0), ("optimizer", "lr", 0.0), ("optimizer", "ema", 1.0),
    ("optimizer", "first_share", 0.0), ("optimizer", "warmup", -1), ("sampling", "batch", 0), ("tuning", "rank", 0),
    ("evaluation", "every", 0), ("early_stop", "min_delta", -0.1), ("checkpoint", "keep_every", -1),
    ("prior_preservation", "drop_captions", 1.0), ("reference", "every", -1),
]  # fmt: skip


@pytest.mark.parametrize(("section", "name", "value"), SECTIONS)
def test_a_config_checks_its_sections(section: str, name: str, value: float):
    config = Config()
    with pytest.raises(ConfigError, match=f"^{section}.{name} is {value}, but must"):
        replace(config, **{section: replace(getattr(config, section), **{name: value})})


@pytest.mark.parametrize("section", ["algorithm", "window", "selection", "remote", "vlm"])
def test_sections_of_several_kinds_check_themselves(section: str):
    for kind in kinds(section):
        for name, value in declared(kind).items():
            with pytest.raises(ConfigError, match=f"^{section}.{name} is {value}, but must"):
                kind(**{name: value})


def kinds(section: str) -> list[type]:
    from tastemaker.config.reflection import dataclass_members, field_types

    return list(dataclass_members(field_types(Config)[section]))


def declared(kind: type) -> dict[str, int]:
    """The fields of a dataclass with a lower limit, each with a number below any."""
    return {one.name: -1 for one in dataclasses.fields(kind) if any(limit in str(one.type) for limit in ("Gt(", "Ge("))}


def test_every_algorithm_but_those_without_numbers_declares_its_ranges():
    assert {kind.name for kind in kinds("algorithm") if not declared(kind)} <= {"pg"}
