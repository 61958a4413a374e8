"""The documentation: links, paths that the code cites, and the reference of every setting."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
import yaml

from tastemaker.config.reflection import dataclass_members, field_types, variant_name
from tastemaker.config.schema import Config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def script(name: str) -> ModuleType:
    """A module of scripts/, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def docs_settings() -> ModuleType:
    return script("docs_settings")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and mkdocs give to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads to no file"
        if anchor:
            assert anchor in anchors(target), f"{link} leads to no heading of {target.name}"


def test_pages_of_the_site_link_to_nothing_outside_it():
    for page in PAGES[1:]:
        for link in LINK.findall(prose(page)):
            if "://" not in link and not link.startswith("#"):
                assert (page.parent / link.partition("#")[0]).resolve().is_relative_to(DOCS), f"{page.name}: {link}"


def cited() -> list[tuple[str, str]]:
    """Every path below docs/ that code, tests and configuration name, with the file that does."""
    folders = ("src", "tests", "scripts", "benchmarks")
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    pattern = re.compile(r"\bdocs/[\w/-]+\.(?:md|json|png|svg)\b")
    found = ((path, file) for file in [*files, ROOT / "Makefile"] for path in pattern.findall(file.read_text("utf-8")))
    return sorted({(path, str(file.relative_to(ROOT))) for path, file in found})


def test_paths_in_the_code_exist():
    missing = [f"{file}: {path}" for path, file in cited() if not (ROOT / path).exists()]
    assert not missing
    assert len(cited()) > 40, "the pattern has stopped finding paths"


def test_the_navigation_has_every_page():
    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        entries = entry.values() if isinstance(entry, dict) else entry
        return [page for below in entries for page in pages(below)]  # type: ignore[union-attr]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in PAGES[1:])


def test_lists_and_tables_follow_a_blank_line():
    """Python-Markdown, unlike GitHub, takes a list or table directly below a paragraph for more of its text."""
    for page in PAGES[1:]:
        lines = prose(page).splitlines()
        for above, line in pairwise(lines):
            starts = re.match(r"(- |\* |1\. |\|)", line)
            if starts and above.strip() and not re.match(r"(\s|- |\* |\d+\. |\|)", above):
                pytest.fail(f"{page.relative_to(ROOT)}: no blank line above {line!r}")


def test_no_setting_that_was_renamed():
    old = re.compile(r"\banchor\.(weight|source|split|images|rows|guided|drop_captions)\b|evaluation\.(watch|fall)\b")
    for page in PAGES:
        assert not old.search(page.read_text("utf-8")), page


# ---- the reference of every setting


def test_the_reference_is_up_to_date(docs_settings):
    for path, text in (
        (docs_settings.PAGE, docs_settings.page()), (docs_settings.PRESETS_PAGE, docs_settings.presets_page())
    ):  # fmt: skip
        assert path.read_text("utf-8") == text, "run `python scripts/docs_settings.py`"


def test_the_reference_has_every_setting(docs_settings):
    text = docs_settings.PAGE.read_text("utf-8")
    rows = set(re.findall(r"^\| `([\w.]+)` \|", text, flags=re.M))
    expected = {name for name, hint in field_types(Config).items() if not dataclass_members(hint)}
    for section, hint in field_types(Config).items():
        for member in dataclass_members(hint):
            expected |= {f"{section}.{field.name}" for field in dataclasses.fields(member)}
            if len(dataclass_members(hint)) > 1:
                assert f"### {section}={variant_name(member)}\n" in text
    assert rows == expected
    assert "| `optimizer.lr` | float | `1e-05` | Learning rate. |" in text


def test_every_setting_has_a_docstring(docs_settings):
    for name, hint in field_types(Config).items():
        for cls in dataclass_members(hint):
            assert set(docs_settings.field_docs(cls)) >= set(field_types(cls)), name


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "int"),
        (float | None, "float or none"),
        (Literal["a", "b"], "`a` or `b`"),
        (tuple[str, ...], "list of str"),
        (tuple[float, float], "[float, float]"),
    ],
)
def test_types_are_written_out(docs_settings, hint, text):
    assert docs_settings.type_text(hint) == text


def test_a_type_without_a_text_is_an_error(docs_settings):
    with pytest.raises(TypeError, match="bytes"):
        docs_settings.type_text(bytes)


# ---- docstrings of public names

LONG = "\n    a = 1\n    b = 2\n    c = 3\n    return a + b + c\n"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("a = 1\n", ["module"]),
        (f'"""Text."""\ndef public():{LONG}', ["public"]),
        (f'"""Text."""\ndef public():\n    """Text."""{LONG}', []),
        (f'"""Text."""\ndef _private():{LONG}', []),
        ('"""Text."""\ndef short():\n    return 1\n', []),
        (
            f'"""Text."""\nclass Public:\n    """Text."""\n    def method(self):{LONG.replace("    ", "        ")}',
            ["method"],
        ),
        (f'"""Text."""\nclass _Private:\n    """Text."""\n    def method(self):{LONG.replace("    ", "        ")}', []),
        (f'"""Text."""\ndef outer():\n    """Text."""\n    def inner():{LONG.replace("    ", "        ")}', []),
    ],
)
def test_public_names_need_docstrings(source, names):
    assert [gap.split(": ")[-1] for gap in script("docs_coverage").missing(source, "file.py")] == names
