"""Every setting acts: a case for each field of `Config` fails where the field is ignored (tests/every_setting)."""

from __future__ import annotations

import importlib
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from tastemaker.models.library_logging import quiet

MODULES = [f"every_setting.{name}" for name in ("sections", "algorithms", "backprop", "loops", "rewards", "engine")]
pytest.register_assert_rewrite(*MODULES)

from every_setting import CASES, Lab, every_field  # noqa: E402

for _module in MODULES:
    importlib.import_module(_module)
FIELDS = every_field()


@pytest.fixture(scope="module")
def lab(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    # Quiet throughout: to change a level makes Python forget what it knows about each logger, which takes a
    # millisecond, at every text that is encoded.
    with quiet():
        yield Lab(tmp_path_factory.mktemp("settings"), checkpoint)


def test_cases_are_of_fields():
    assert sorted(CASES.keys() - FIELDS.keys()) == []


@pytest.mark.parametrize("field", FIELDS)
def test_every_setting_acts(field: str, lab: Lab) -> None:
    if field not in CASES:
        pytest.fail(f"no case shows that the setting {field} acts: add one to tests/every_setting")
    lab.once(CASES[field])


def test_changes_that_cases_must_notice_fit_the_sources():
    """Those of scripts/mutants.py, which takes too long to run here."""
    root = Path(__file__).parents[2]
    for mutant in runpy.run_path(str(root / "scripts/mutants.py"))["MUTANTS"]:
        text = (root / "src/tastemaker" / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.old) == 1, mutant
        assert set(mutant.fields) <= CASES.keys(), mutant
        assert all((root / test.partition("::")[0]).is_file() for test in mutant.tests), mutant
        assert mutant.fields or mutant.tests, mutant
