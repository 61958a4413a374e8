"""Strict YAML to and from `Config`: every mistake is one sentence with file, line and the nearest name.

Scalars follow the YAML 1.2 core schema, so that `1e-5` is a number, and `yes`, `off` and `2026-01-01` are text.
Documents are composed into nodes and never constructed, so that no tag can make an object.
"""

from __future__ import annotations

import codecs
import dataclasses
import math
import re
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tastemaker.algorithms.registry import is_foreign, load_algorithm, saved_name
from tastemaker.config.presets import PRESETS
from tastemaker.config.reflection import dataclass_members, field_types, present_name, union_members, variant_name
from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError, nearest

T = TypeVar("T")

_TAG = "tag:yaml.org,2002:"
_CORE = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks with the encodings that they stand for. That of UTF-16 begins that of UTF-32, and comes later."""
_EXPECTED = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_GIVEN = {"str": "text", "int": "a whole number", "float": "a number"}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - a plain class attribute in PyYAML too


class _Dumper(yaml.SafeDumper):
    """Quotes text that either the core schema or YAML 1.1 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> ScalarNode:
    # PyYAML's single quotes lose line separators such as \x85; double quotes escape them.
    return dumper.represent_scalar(_TAG + "str", text, None if text.isprintable() else '"')


for _name, _pattern, _first in _CORE:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)
_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(tuple, lambda dumper, data: dumper.represent_sequence(_TAG + "seq", data, flow_style=True))


def load_config(path: Path | str, base: Config) -> Config:
    """The config in a YAML file; what it leaves out is taken from its `preset:`, or from `base` without one.

    Raises ConfigError in one sentence for whatever is wrong with the file or its values.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that the file system's encoding lacks
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        known = "UTF-8" if encoding == "utf-8" else f"{encoding}, as its first bytes say"
        raise ConfigError(
            f"{path} is not a text file in {known} (byte {error.start} is wrong): save it as UTF-8"
        ) from error
    return parse_config(text, base, str(path))


def parse_config(text: str, base: T, name: str = "config") -> T:
    """As `load_config`, from text and for any dataclass; `name` stands for the file in messages."""
    root = _compose(text, name)
    reader = _Reader(name)
    pairs = {} if root is None else reader.pairs(root, "")
    if root is None or not pairs:
        raise ConfigError(f"{name} is empty: expected settings such as `preset: {next(iter(PRESETS))}`")
    if not isinstance(base, Config):
        return reader.section(type(base), root, "", base)
    configs: dict[str, Any] = {name: preset.config for name, preset in PRESETS.items()}
    start = reader.one_of(configs, pairs["preset"], "preset") if "preset" in pairs else base
    return reader.section(type(base), root, "", start, extra="preset")


def dump_config(config: Any) -> str:
    """YAML which `load_config` reads as an equal config."""
    return yaml.dump(plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _compose(text: str, name: str) -> Node | None:
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: not a config: nested too deeply") from error


def plain(value: Any, section_name: str = "") -> Any:
    """Nested dictionaries of a config's settings, with the names of those sections that are one of several."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    name = variant_name(type(value))
    if name is not None and section_name == "algorithm":  # which another package may have made
        name = saved_name(type(value))
    section = {field.name: plain(getattr(value, field.name), field.name) for field in dataclasses.fields(value)}
    return section if name is None else {"name": name, **section}


def _kind(node: Node) -> str:
    return node.tag.removeprefix(_TAG)


class _Reader:
    """Turns nodes into values of the types that the dataclasses name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def fail(self, node: Node, text: str) -> NoReturn:
        raise ConfigError(f"{self.name}:{node.start_mark.line + 1}: {text}")

    def shown(self, node: Node) -> str:
        """What a person wrote, in short."""
        if not isinstance(node, ScalarNode):
            return "a list" if isinstance(node, SequenceNode) else "a section of keys"
        text = node.value if len(node.value) <= 40 else node.value[:37] + "..."
        return repr(text) if _kind(node) == "str" else text or "empty"

    def mismatch(self, node: Node, where: str, expected: str) -> NoReturn:
        """Raises ConfigError for a value of the wrong kind."""
        given = self.shown(node)
        if isinstance(node, ScalarNode) and _kind(node) in _GIVEN:
            given += f" ({_GIVEN[_kind(node)]})"
        quotes = "; put it in quotes" if expected == "text" and isinstance(node, ScalarNode) and node.value else ""
        self.fail(node, f"{where} is {given}, expected {expected}{quotes}")

    def pairs(self, node: Node, where: str) -> dict[str, Node]:
        """Keys and value nodes of a mapping. Fails for keys that are given twice or are not plain names."""
        self.check_tag(node)
        if isinstance(node, ScalarNode) and _kind(node) == "null":
            return {}
        if not isinstance(node, MappingNode):
            self.fail(node, f"{where or 'the file'} is {self.shown(node)}, expected keys and values (`key: value`)")
        found: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self.fail(key, "a key must be a plain name")
            if key.value in found:
                self.fail(key, f"key {key.value!r} is given twice (first on line {lines[key.value]})")
            found[key.value], lines[key.value] = value, key.start_mark.line + 1
        return found

    def check_tag(self, node: Node) -> None:
        """Fails for tags other than those of plain values, `!!python/...` first of all."""
        if _kind(node) not in ("null", "bool", "int", "float", "str", "seq", "map"):
            tag = node.tag.replace(_TAG, "!!")
            self.fail(node, f"the tag {tag} is not allowed: write a plain value")

    def section(self, cls: type[T], node: Node, where: str, base: T, extra: str | None = None) -> T:
        """A dataclass from a mapping; fields that it leaves out are those of `base`."""
        hints = field_types(cls)
        allowed = [*hints, *([extra] if extra else [])]
        changes = {}
        keys = {key.value: key for key, _ in node.value} if isinstance(node, MappingNode) else {}
        for key, value in self.pairs(node, where).items():
            if key not in allowed:
                under = f" under {where}" if where else ""
                renamed = present_name(f"{where}.{key}" if where else key)
                hint = f"it is called {renamed} now" if renamed else nearest(key, allowed)
                self.fail(keys[key], f"unknown key {key!r}{under}; {hint}")
            if key in hints:
                name = f"{where}.{key}" if where else key
                changes[key] = self.value(hints[key], value, name, getattr(base, key))
        return dataclasses.replace(base, **changes)  # type: ignore[type-var]

    def choice(self, members: tuple[type, ...], node: Node, where: str, base: Any) -> Any:
        """A section that is one of several dataclasses, picked by its key `name`; `base`'s own class without it."""
        named = {variant_name(cls): cls for cls in members}
        pairs = self.pairs(node, where)
        if "name" not in pairs or named.keys() == {None}:
            return self.section(type(base), node, where, base)
        name = pairs["name"]
        if where == "algorithm" and isinstance(name, ScalarNode) and is_foreign(name.value):
            return self.foreign(name, node, where, base)
        cls = self.one_of({str(key): member for key, member in named.items()}, name, f"{where}.name")
        # A section of another class shares no defaults with the base's.
        return self.section(cls, node, where, base if type(base) is cls else cls(), extra="name")

    def foreign(self, name: ScalarNode, node: Node, where: str, base: Any) -> Any:
        """An algorithm of another package, by its entry point's name or as `module:Class`."""
        try:
            cls: Any = load_algorithm(name.value)
        except ConfigError as error:
            self.fail(name, f"{where}.name: {error}")
        return self.section(cls, node, where, base if type(base) is cls else cls(), extra="name")

    def value(self, hint: Any, node: Node, where: str, base: Any) -> Any:
        """A value of the hinted type: dataclasses, unions with None, literals, tuples and scalars."""
        self.check_tag(node)
        if sections := dataclass_members(hint):
            return self.choice(sections, node, where, base)
        members = union_members(hint)
        if type(None) in members and _kind(node) == "null":
            return None
        optional = " or null" if type(None) in members else ""
        (member,) = (member for member in members if member is not type(None))
        if get_origin(member) is Literal:
            return self.one_of({str(option): option for option in get_args(member)}, node, where)
        if get_origin(member) is tuple:
            return self.sequence(get_args(member), node, where)
        return self.scalar(member, node, where, optional)

    def one_of(self, options: dict[str, T], node: Node, where: str) -> T:
        """What stands in `options` under the word that was written."""
        if not isinstance(node, ScalarNode) or node.value not in options:
            given = node.value if isinstance(node, ScalarNode) else ""
            self.fail(node, f"{where} cannot be {self.shown(node)}; {nearest(given, list(options))}")
        return options[node.value]

    def sequence(self, hints: tuple[Any, ...], node: Node, where: str) -> tuple[Any, ...]:
        """A tuple from a list, of any length for `tuple[X, ...]`."""
        if not isinstance(node, SequenceNode):
            self.mismatch(node, where, "a list, like [a, b]")
        if hints[-1] is Ellipsis:
            hints = (hints[0],) * len(node.value)
        if len(hints) != len(node.value):
            self.fail(node, f"{where} needs {len(hints)} entries, given {len(node.value)}")
        items = zip(hints, node.value, strict=True)
        return tuple(self.value(hint, item, f"{where}[{i}]", None) for i, (hint, item) in enumerate(items))

    def scalar(self, kind: type, node: Node, where: str, optional: str = "") -> Any:
        """A str, int, float or bool; a whole number is also a float, and nothing else turns into another."""
        given = {"str": str, "int": int, "float": float, "bool": bool}.get(_kind(node))
        if not isinstance(node, ScalarNode) or not (given is kind or (given is int and kind is float)):
            self.mismatch(node, where, _EXPECTED[kind] + optional)
        if kind is bool:
            return node.value.lower() == "true"
        if kind is float:
            # YAML writes .inf and .nan where Python has inf and nan.
            text = re.sub(r"\.(?=[iInN])", "", node.value)
            return self.number(float, text, node, where)
        return node.value if kind is str else self.number(int, node.value, node, where)

    def number(self, kind: type, text: str, node: Node, where: str) -> Any:
        try:
            number = kind(text)
        except ValueError:  # a tag such as !!int before text, or thousands of digits
            self.fail(node, f"{where} is {self.shown(node)}, which cannot be read as {_EXPECTED[kind]}")
        if isinstance(number, float) and not math.isfinite(number):
            self.fail(node, f"{where} is {self.shown(node)}, but must be finite")
        return number
