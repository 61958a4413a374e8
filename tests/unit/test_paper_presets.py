"""Every value of the papers' presets against one table of values with sources, tests/data/paper_presets*.yaml."""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from tastemaker.config.presets import PRESETS, backprop
from tastemaker.config.reflection import variant_name
from tastemaker.config.schema import Config

DATA = Path(__file__).parents[1] / "data"
GRADIENT = DATA / "paper_presets_gradient.yaml"
"""The presets of reward backpropagation have a file of their own."""
TABLES = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(DATA.glob("paper_presets*.yaml"))]
PAPERS = [
    name
    for name, preset in PRESETS.items()
    if not preset.config.model.startswith("bundled") and (GRADIENT.exists() or name not in backprop.PRESETS)
]


def rows(name):
    """The table's rows for a preset, by field."""
    found = {}
    for table in TABLES:
        for pattern, fields in table.items():
            if fnmatch(name, pattern):
                found |= fields
    return found


def flat(config, default, prefix=""):
    """All values of a config by dotted name, and the names of those that are not the default."""
    values, changed = {}, set()
    for field in dataclasses.fields(config):
        name, value, usual = prefix + field.name, getattr(config, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            kind = variant_name(type(value))
            if kind is not None:
                values[name] = kind
                if type(value) is not type(usual):
                    changed.add(name)
                    usual = type(value)()
            inner, different = flat(value, usual, f"{name}.")
            values |= inner
            changed |= different
        else:
            values[name] = value
            if value != usual:
                changed.add(name)
    return values, changed


def plain(value):
    return list(value) if isinstance(value, tuple) else value


def test_every_papers_preset_is_in_the_table_and_nothing_else():
    assert len(PAPERS) >= 30
    patterns = [pattern for table in TABLES for pattern in table]
    assert [name for name in PAPERS if not rows(name)] == []
    assert [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in PAPERS)] == []


@pytest.mark.parametrize("name", PAPERS)
def test_the_values_are_the_tables(name):
    """Each row's value is the preset's, and each value of the preset that is not the default has a row."""
    table = rows(name)
    values, changed = flat(PRESETS[name].config, Config())
    assert sorted(changed - table.keys()) == []
    assert sorted(table.keys() - values.keys()) == []
    for field, row in table.items():
        expected = float(row["value"]) if isinstance(values[field], float) else row["value"]
        assert plain(values[field]) == expected, field


@pytest.mark.parametrize("name", PAPERS)
def test_what_is_not_the_papers_is_said(name):
    preset = PRESETS[name]
    text = f"{preset.summary} {preset.source}"
    for field, row in rows(name).items():
        assert row["from"] in ("paper", "code", "ours"), field
        assert row["source"].strip(), field
        assert row.keys() <= {"value", "from", "source", "said"}, field
        assert row.get("said", "") in text, field
        if row["from"] != "paper":
            assert row["from"] in text.lower(), field


def test_a_value_that_changes_is_noticed():
    """The walk through a config sees fields of sections and of other kinds of sections."""
    config = PRESETS["b2-sd14-template1"].config
    moved = dataclasses.replace(config, selection=dataclasses.replace(config.selection, threshold=0.7))
    before, _ = flat(config, Config())
    after, changed = flat(moved, Config())
    assert {field for field in after if after[field] != before[field]} == {"selection.threshold"}
    assert {"selection", "selection.threshold", "optimizer.images_per_update"} <= changed
