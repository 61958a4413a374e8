"""Algorithms by the name that presets, files and reports give them. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from importlib.metadata import entry_points
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.awm import AWM
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.dgpo import DGPO
from tastemaker.algorithms.diffusion_dpo import DiffusionDPO
from tastemaker.algorithms.diffusion_kto import DiffusionKTO
from tastemaker.algorithms.direct_align import DirectAlign
from tastemaker.algorithms.dpo import DPO
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.dppo import DPPO
from tastemaker.algorithms.draft import DRaFT
from tastemaker.algorithms.grpo import GRPO
from tastemaker.algorithms.mapo import MaPO
from tastemaker.algorithms.nft import NFT
from tastemaker.algorithms.online_diffusion_dpo import OnlineDiffusionDPO
from tastemaker.algorithms.pg import PG
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.refl import ReFL
from tastemaker.algorithms.rwr import RWR
from tastemaker.errors import ConfigError, nearest
from tastemaker.importing import working_directory_first

if TYPE_CHECKING:
    from tastemaker.algorithms.base import Algorithm

GROUP = "tastemaker.algorithms"
"""Entry-point group in which another package names its algorithms."""

ALGORITHMS: dict[str, type[Algorithm]] = {
    cls.name: cls
    for cls in (
        DDPO,
        PG,
        DPOK,
        DPO,
        GRPO,
        DPPO,
        PPO,
        RWR,
        NFT,
        AWM,
        DGPO,
        OnlineDiffusionDPO,
        DiffusionDPO,
        MaPO,
        DiffusionKTO,
        AlignProp,
        DRaFT,
        ReFL,
        DirectAlign,
    )
}
"""Each is a member of `Config.algorithm`'s annotation: a test."""


def installed() -> dict[str, str]:
    """Names and targets of the algorithms that other installed packages offer."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


def is_foreign(name: str) -> bool:
    """Whether a name is that of another package's algorithm, `module:Class` or an entry point's, loadable or not."""
    return name not in ALGORITHMS and (":" in name or name in installed())


def load_algorithm(name: str) -> type:
    """The class of a built-in algorithm, an entry point's, or `module:Class`.

    Raises ConfigError where there is none, its module does not import, or it is no algorithm: a frozen dataclass with
    default values, `name`, `needs`, `requirements`, `prepare` and `loss` (`algorithms.base.Algorithm`).
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    target = installed().get(name, name)
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        hint = nearest(name, [*ALGORITHMS, *installed()])
        raise ConfigError(f"unknown algorithm {name!r}; {hint} (or give `module:Class`)")
    try:
        with working_directory_first():
            module: Any = importlib.import_module(module_name)
        found = functools.reduce(getattr, attribute.split("."), module)
    except Exception as error:  # whatever a module raises while it is imported
        reason = " ".join(str(error).split())
        hint = "give a class that Python finds from here, as `module:Class`"
        if module_name == "__main__":
            hint = "it was defined in a script or notebook, so go on there, with tastemaker.resume(run)"
        raise ConfigError(
            f"the algorithm {name!r} cannot be imported ({type(error).__name__}: {reason}): {hint}"
        ) from error
    require_algorithm(found, name)
    return found


def saved_name(cls: type) -> str:
    """The name by which `load_algorithm` finds a class: its own, an entry point's, or `module:Class`."""
    own = f"{cls.__module__}:{cls.__qualname__}"
    if cls in ALGORITHMS.values():
        return next(name for name, known in ALGORITHMS.items() if known is cls)
    return next((name for name, target in installed().items() if target == own), own)


def require_algorithm(cls: Any, name: str) -> None:
    """Raises ConfigError where a class of another package is no algorithm that can be made without arguments."""
    expected = "a frozen dataclass with default values, `name`, `needs`, `requirements`, `prepare` and `loss`"
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(f"the algorithm {name!r} is {cls!r}, but must be {expected}")
    # `in dir` looks at base classes too.
    lacking = [part for part in ("name", "needs", "requirements", "prepare", "loss") if part not in dir(cls)]
    needed = [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if lacking or needed:
        wrong = f"has no {lacking[0]}" if lacking else f"has no default value for {needed[0]}"
        raise ConfigError(f"the algorithm {name!r} {wrong}, but must be {expected}")
    try:
        unreadable = _unreadable(cls)
    except Exception as error:  # whatever an annotation raises while it is evaluated
        raise ConfigError(
            f"the types of the settings of the algorithm {name!r} cannot be read ({type(error).__name__}: {error}): "
            "import them in its module, and not only for type checkers"
        ) from error
    if unreadable:
        raise ConfigError(
            f"the setting {unreadable[0]} of the algorithm {name!r} has a type that config.yaml cannot hold: give it "
            "str, int, float, bool, a Literal or a tuple of those, one of them or None, or a dataclass"
        )


def _unreadable(cls: type) -> list[str]:
    """Those of a dataclass's fields that cannot be saved in a file and read again."""
    hints = get_type_hints(cls, include_extras=True)
    return [field.name for field in dataclasses.fields(cls) if not _is_readable(hints[field.name])]


def _is_readable(hint: Any) -> bool:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return not _unreadable(hint)
    origin, members = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _is_readable(members[0])
    if origin in (Union, UnionType):
        values = [member for member in members if member is not NoneType]
        return len(values) == 1 and not dataclasses.is_dataclass(values[0]) and _is_readable(values[0])
    if origin is tuple:
        return all(member is Ellipsis or _is_readable(member) for member in members)
    return origin is Literal or hint in (str, int, float, bool)


def summary(algorithm: type) -> str:
    """The first line of an algorithm's docstring."""
    return (algorithm.__doc__ or "").strip().partition("\n")[0].rstrip(".")
