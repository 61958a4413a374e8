"""Cells of the files that benchmarks are published in, with the file, row and column of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tastemaker.data.tables import checked_text, read_text, shown, tidy
from tastemaker.errors import DataError


def cell(row: Mapping[str, Any], column: str, where: str) -> Any:
    """A row's value in a column. Raises DataError where there is no such column."""
    if column not in row:
        raise DataError(f"{where}: no column {column}; the columns are {shown(', '.join(map(str, row)))}")
    return row[column]


def text(row: Mapping[str, Any], column: str, where: str) -> str:
    """A row's text in a column, which is not empty. Raises DataError."""
    return checked(cell(row, column, where), column, where)


def checked(value: Any, column: str, where: str) -> str:
    """A value that is text and not empty. Raises DataError."""
    found = tidy(checked_text(value, f"{where}, column {column}", column))
    if not found:
        raise DataError(f"{where}, column {column}: expected a text, but it is empty")
    return found


def name(value: Any, column: str, where: str) -> str:
    """An id, which is text or a whole number. Raises DataError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return checked(value, column, where)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that is one object. Raises DataError."""
    content = read_text(path)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{path}: not JSON that can be read ({reason})") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object, but found {type(found).__name__} {shown(found)[:80]!r}")
    if not found:
        raise DataError(f"{path} has no entries")
    return found


def mapping(value: Any, where: str) -> dict[str, Any]:
    """A value that is a JSON object. Raises DataError."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, but found {shown(value)[:80]!r}")
    return value
