"""Flags from dataclasses through tyro, with every mistake turned into one sentence."""

from __future__ import annotations

import contextlib
import copy
import difflib
import io
import itertools
import re
import warnings
from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, NoReturn, TypeVar, cast, get_args, get_origin

import tyro

from tastemaker.config.reflection import dataclass_members, field_types, present_name, union_members, variant_name
from tastemaker.errors import ConfigError, nearest

T = TypeVar("T")

_ASSIGNMENT = re.compile(r"^(--)?([A-Za-z_][\w-]*(?:\.[\w-]+)*)=(.*)$", re.DOTALL)
# tyro passes on what Python says of a value, which means little to those who do not program.
_REWORDED = (
    (r"Error parsing (--\S+): could not convert string to float: (.*)", r"\1 is \2, expected a number"),
    (r"Error parsing (--\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 is \2, expected a whole number"),
    (r"Error parsing (--\S+): no type matching (\S+) could be instantiated from \[(.*?)\].*", r"\1 is \3, expected \2"),
    (r"Error parsing (--\S+): Could not parse arguments \[(.*)\] into .*", r"\1 cannot be \2"),
    (r"expected \{None\}\|INT", "expected a whole number or None"),
    (r"expected \{None\}\|FLOAT", "expected a number or None"),
    (r"invalid choice (.+) for argument '(--\S+)'. Expected one of \((.*?),?\)", r"\2 cannot be \1; known: \3"),
    (r"Missing value for argument '(\S+)'. Expected 1 values", r"\1 needs a value"),
    (r"Missing value for argument '(\S+)'. Expected (\d+) values", r"\1 needs \2 values"),
)


def parse(cls: type[T], argv: list[str], command: str, default: T | None = None) -> T:
    """The dataclass `cls` from a command's arguments. Exits after `--help`; raises ConfigError for wrong ones."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr), _quick_checks(), warnings.catch_warnings():
            # tyro takes the flags of another package's algorithm off the default value, and warns of it.
            warnings.filterwarnings("ignore", ".* does not match any type in Union", UserWarning)
            # The tuple's first type follows from `default`, which tyro's overloads do not say for an optional one.
            args, unknown = cast(
                "tuple[T, list[str]]",
                tyro.cli(
                    cls, args=argv, prog=f"tastemaker {command}", default=default, return_unknown_args=True,
                    config=(tyro.conf.AvoidSubcommands,),
                ),
            )  # fmt: skip
    except (SystemExit, ConfigError) as stop:
        if isinstance(stop, SystemExit) and not stop.code:
            raise
        # A mistyped flag may be why a setting is missing or does not fit: say that first.
        known = flag_types(cls, default=default)
        if mistyped := _mistyped(argv, flag_types(cls) | known):
            _refuse(mistyped, list(known), command)
        if isinstance(stop, ConfigError):
            raise
        raise ConfigError(_sentence(stderr.getvalue(), command)) from None
    if unknown:
        _refuse(unknown[0], list(flag_types(cls, default=default)), command)
    return args


@contextlib.contextmanager
def _quick_checks() -> Iterator[None]:
    """Answers tyro's question whether a default fits `X | Y` or a tuple, for which it would import typeguard.

    That brings asyncio and unittest.mock, a quarter of the time of `--help`; tyro's own short way knows Union alone.
    """
    from tyro import _resolver

    slow = getattr(_resolver, "is_instance", None)
    if slow is None:  # another version of tyro
        yield
        return

    def is_instance(hint: Any, value: Any) -> bool:
        kind, inner = get_origin(hint), get_args(hint)
        if kind is UnionType:
            return any(is_instance(one, value) for one in inner)
        if kind is tuple and isinstance(value, tuple):
            hints = inner[:1] * len(value) if inner[1:] == (...,) else inner
            return len(hints) == len(value) and all(map(is_instance, hints, value))
        return slow(hint, value)

    _resolver.is_instance = is_instance
    try:
        yield
    finally:
        _resolver.is_instance = slow


def choose(argv: list[str], config: T) -> tuple[list[str], T]:
    """Takes `--algorithm NAME` and the like out of the arguments: sections that are one of several dataclasses.

    An algorithm may also be another package's: an entry point's name, or `module:Class`. The config that is returned
    has them with their defaults. It is not checked: the flags that follow may be needed for it to be right. Raises
    ConfigError for an unknown name, and for a class that cannot be imported or is no algorithm.
    """
    rest, chosen = list(argv), copy.copy(config)
    for name, hint in field_types(type(config)).items():
        members = {str(variant_name(member)): member for member in dataclass_members(hint)}
        while len(members) > 1 and f"--{name}" in rest:
            index = rest.index(f"--{name}")
            given = rest[index + 1] if index + 1 < len(rest) else ""
            cls = members.get(given) or _foreign(name, given, list(members))
            if type(getattr(config, name)) is not cls:
                object.__setattr__(chosen, name, cls())
            del rest[index : index + 2]
    return rest, chosen


def _foreign(section: str, given: str, known: list[str]) -> type:
    """The class of another package's algorithm. Raises ConfigError, also for an unknown name of another section."""
    if section == "algorithm":
        # Imported here, since it searches the installed packages, and most commands name a built-in algorithm.
        from tastemaker.algorithms.registry import installed, is_foreign, load_algorithm

        if is_foreign(given):
            return load_algorithm(given)
        known = [*known, *installed()]
    raise ConfigError(f"{section} cannot be {given!r}; {nearest(given, known)}")


def flag_types(cls: type, prefix: str = "", default: Any = None) -> dict[str, Any]:
    """Dotted names of a dataclass's flags with their types; a field annotated with `arg(name="")` adds no prefix, and
    one with another name has that.

    Where a section is one of several dataclasses, the flags of the one in `default`, or of all without it.
    """
    found: dict[str, Any] = {}
    for name, hint in field_types(cls).items():
        marks = getattr(hint, "__metadata__", ())
        if tyro.conf.Positional in marks:
            continue
        named = [given for mark in marks if (given := getattr(mark, "name", None)) is not None]
        path = prefix if "" in named else f"{prefix}{(named or [name])[0]}"
        members, value = dataclass_members(hint), getattr(default, name, None)
        if len(members) > 1:
            found[path] = Literal[tuple(str(variant_name(member)) for member in members)]
        for member in members if value is None else [type(value)]:
            if members:
                found |= flag_types(member, f"{path}." if path else "", value)
        if not members:
            found[path] = hint
    return found


def split_assignments(argv: list[str], types: dict[str, Any]) -> list[str]:
    """Rewrites `optimizer.lr=1e-4`, with or without dashes before it, to the flag and its values."""
    rewritten: list[str] = []
    for i, word in enumerate(argv):
        match = _ASSIGNMENT.match(word)
        name = match[2].replace("-", "_") if match else ""
        # A word after a flag is that flag's value, as in `--reward a=b`, unless it names a setting.
        is_value = i > 0 and argv[i - 1].startswith("--") and "=" not in argv[i - 1]
        if match is None or (name not in types and (match[1] or is_value)):
            rewritten.append(word)
        else:
            rewritten += _flag(name, match[3], types.get(name))
    return rewritten


def nearest_flags(name: str, known: list[str]) -> str:
    """A hint: the flags closest to `name` in full or in their last part, so that `lr` finds `optimizer.lr`."""
    name = name.replace("-", "_")

    def likeness(flag: str) -> float:
        last = difflib.SequenceMatcher(None, name.rpartition(".")[2], flag.rpartition(".")[2]).ratio()
        full = difflib.SequenceMatcher(None, name, flag).ratio()
        # Nearly as good as in full: `sampling.clip` is meant to be `sampling.` something first.
        return max(full, 0.9 * last)

    scores = {flag: likeness(flag) for flag in known}
    best = max(scores.values())
    if best < 0.6:
        return ""
    close = [f"--{flag.replace('_', '-')}" for flag, score in scores.items() if score == best]
    return f"did you mean {' or '.join(close[:3])}?"


def _flag(name: str, value: str, hint: Any) -> list[str]:
    flag = f"--{name}"
    member = next((m for m in union_members(hint) if m is not type(None)), None)
    if get_origin(member) is tuple:
        values = [part.strip() for part in value.strip("[]() ").split(",") if part.strip()]
        return [flag, *values]
    if member is bool and value.lower() in ("true", "false"):
        section, _, last = name.rpartition(".")
        return [flag if value.lower() == "true" else f"--{section + '.' if section else ''}no_{last}"]
    if value.lower() in ("none", "null") and type(None) in union_members(hint):
        return [flag, "None"]
    return [flag, value]


def _mistyped(argv: list[str], types: dict[str, Any]) -> str | None:
    """The first flag that is none of those in `types`."""
    for word in argv:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        positive = re.sub(r"(^|\.)no_(?=[^.]*$)", r"\1", name)
        if word.startswith("--") and not {name, positive} & {*types, "help"}:
            return word
    return None


def _refuse(word: str, known: list[str], command: str) -> NoReturn:
    if not word.startswith("-"):
        raise ConfigError(f"unexpected {word!r}; see `tastemaker {command} --help`")
    flag = word.partition("=")[0]
    renamed = present_name(flag.lstrip("-").replace("-", "_"))
    hint = f"it is called --{renamed} now" if renamed else nearest_flags(flag.lstrip("-"), known)
    raise ConfigError(f"unknown flag {flag}; {hint or f'see `tastemaker {command} --help`'}")


def _sentence(box: str, command: str) -> str:
    """What stands between the first two rules of the box that tyro draws around an error."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│| ") for line in box.splitlines()]
    # The box's top bears a title. Where the terminal cannot show its lines, a dashed rule follows it.
    content = itertools.dropwhile(_is_rule, lines[1:])
    text = " ".join(itertools.takewhile(lambda line: not _is_rule(line), content))
    for pattern, replacement in _REWORDED:
        text = re.sub(pattern, replacement, text)
    return f"{text.strip().rstrip('.')} (see `tastemaker {command} --help`)"


def _is_rule(line: str) -> bool:
    return len(line) >= 10 and set(line) <= set("─-╭╮╰╯")
