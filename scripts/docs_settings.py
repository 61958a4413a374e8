"""Writes docs/reference/settings.md: every setting with its type, default and docstring, from the Config dataclasses.

And docs/reference/presets.md: every preset with what has been measured of it.

    python scripts/docs_settings.py            # writes the page
    python scripts/docs_settings.py --check    # exits with 1 where the page in the repository is out of date

The docstring of a field is the string below it in the source, as in `tastemaker train PRESET --help`.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import sys
import textwrap
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tastemaker.config.presets import PRESETS
from tastemaker.config.reflection import dataclass_members, field_types, variant_name
from tastemaker.config.schema import Config

PAGE = Path(__file__).parent.parent / "docs/reference/settings.md"
HEAD = """\
# Settings

<!-- Written by scripts/docs_settings.py; do not edit. -->

Every setting of a run, with its type, its default and what it does. `tastemaker train PRESET --help` shows the same
with the values of a preset. A setting is given as a flag (`--optimizer.lr 1e-4` or `optimizer.lr=1e-4`) or as a key of
a YAML file; see [Configuration](../guides/configuration.md).
"""


PRESETS_PAGE = PAGE.with_name("presets.md")
PRESETS_HEAD = """\
# Presets

<!-- Written by scripts/docs_settings.py; do not edit. -->

Each preset has a level of evidence, which `tastemaker ls presets` shows too:

- **verified**: runs with these very settings; the page has their figures and curves, and the command makes them again.
- **proxy**: runs of the same method on a reward of the same kind, with other settings or on a smaller model of the same
  kind.
- **not verified**: no run that would say anything. The values are those of the paper or its code all the same
  ([the papers' presets](../methods/paper-presets.md)).

| preset | level | what was seen, or what is missing | command |
|---|---|---|---|
"""


def presets_page() -> str:
    """The whole page of the presets."""
    rows = []
    for name, preset in PRESETS.items():
        evidence, run = preset.evidence, preset.evidence.run
        seen, command = evidence.note, ""
        if run is not None:
            page, figure = (path.replace("docs/results/", "../results/") for path in (run.page, run.figure))
            seen += f" ([figures]({page}), [curve]({figure}))"
            command = f"`{run.command}`"
        rows.append(f"| `{name}` | {evidence} | {seen} | {command} |")
    return PRESETS_HEAD + "\n".join(rows) + "\n"


def field_docs(cls: type) -> dict[str, str]:
    """The string below each annotated field in the source of a class, on one line; fields without one are left out."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            docs[statement.target.id] = " ".join(below.value.value.split())
    return docs


def type_text(hint: Any) -> str:
    """A type as a reader writes it: `int`, `float or none`, `list of str`.

    Raises TypeError for a kind of type that no setting has had so far.
    """
    names = {int: "int", float: "float", bool: "bool", str: "str", type(None): "none"}
    if hint in names:
        return names[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(member) for member in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {type_text(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(type_text(member) for member in arguments)}]"
    raise TypeError(f"docs_settings.py has no text for the type {hint!r}: add it to type_text")


def default_text(field: dataclasses.Field[Any]) -> str:
    """The default as it is written in a YAML file; empty for a setting that must be given."""
    if field.default_factory is not dataclasses.MISSING:
        return f"`{_yaml(field.default_factory())}`"
    return "" if field.default is dataclasses.MISSING else f"`{_yaml(field.default)}`"


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(_yaml(member) for member in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def table(cls: type, prefix: str) -> str:
    """The fields of a dataclass that are no sections, a row each."""
    docs, rows = field_docs(cls), []
    hints = field_types(cls)
    for field in dataclasses.fields(cls):
        if not dataclass_members(hints[field.name]):
            cells = (
                f"`{prefix}{field.name}`", type_text(hints[field.name]), default_text(field), docs.get(field.name, "")
            )  # fmt: skip
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(["| setting | type | default | |", "|---|---|---|---|", *rows]) if rows else "No settings."


def section(cls: type, heading: str, prefix: str) -> str:
    """A heading, the class' docstring, and the table of its fields."""
    return f"{heading}\n\n{inspect.cleandoc(cls.__doc__ or '')}\n\n{table(cls, prefix)}\n"


def page() -> str:
    """The whole page."""
    parts = [HEAD, section(Config, "## The run", "")]
    for name, hint in field_types(Config).items():
        members = dataclass_members(hint)
        if len(members) == 1:
            parts.append(section(members[0], f"## {name}", f"{name}."))
        elif members:
            default = variant_name(type(getattr(Config(), name)))
            choices = ", ".join(f"`{variant_name(member)}`" for member in members)
            parts.append(
                f"## {name}\n\nOne of {choices}; `{default}` unless `{name}=NAME` chooses another. "
                "Each has its own settings.\n"
            )
            parts += [section(m, f"### {name}={variant_name(m)}", f"{name}.") for m in members]
    return _linked("\n".join(parts))


def _linked(text: str) -> str:
    """Paths of pages, `docs/guides/prompts.md`, as links from the page's own folder."""
    return re.sub(r"(?<![\w/])docs/((?:\w+/)?([\w-]+)\.md)", r"[\2](../\1)", text)


def main() -> int:
    """Writes or checks the page; the exit code is 1 where `--check` finds it out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check, failed = parser.parse_args().check, 0
    for path, text in ((PAGE, page()), (PRESETS_PAGE, presets_page())):
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            print(f"{path} is out of date: run `python scripts/docs_settings.py`", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
