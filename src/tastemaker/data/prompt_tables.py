"""Prompts out of files and tables: .txt, the tables of data/tables.py, and Hugging Face data sets."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tastemaker.data.hf_datasets import open_dataset, read_columns
from tastemaker.data.prompt_set import PromptSet
from tastemaker.data.tables import TEXT, checked_text, is_table, lines, read_records, read_text, text_column, tidy
from tastemaker.errors import DataError, PromptError


def from_file(path: Path) -> PromptSet:
    """The prompts of a .txt file, a table or a .parquet file. Raises PromptError."""
    try:
        if path.suffix.lower() == ".parquet":
            return from_dataset(str(path))
        if not is_table(path):
            return _from_lines(path)
        # A list may also be an array of texts.
        rows = [(where, {"prompt": row} if isinstance(row, str) else row) for where, row in read_records(path)]
        for where, row in rows:
            if not isinstance(row, dict):
                raise DataError(f'{where}: expected {{"prompt": "...", "weight": 1}}, but found {str(row)[:80]}')
        text = text_column(list(rows[0][1]), rows[0][0] if path.suffix.lower() not in (".csv", ".tsv") else str(path))
        return _merged([_entry(row, text, where) for where, row in rows])
    except DataError as error:
        raise PromptError(str(error)) from error


def _from_lines(path: Path) -> PromptSet:
    """A prompt a line."""
    found = [
        (checked_text(prompt, f"{path}:{number}", "prompt"), 1.0)
        for number, line in enumerate(lines(read_text(path)), 1)
        if (prompt := tidy(line))
    ]
    if not found:
        raise DataError(f"the prompt file {path} is empty: expected a prompt a line")
    return _merged(found)


def from_dataset(source: str) -> PromptSet:
    """The prompts of `NAME` or `NAME:SPLIT`, the split `train` when left out. Raises PromptError."""
    found = re.fullmatch(r"(.+?)(?::(\w+))?", source, re.DOTALL)
    if found is None:
        raise PromptError("dataset: names no data set: expected dataset:FOLDER, dataset:OWNER/NAME or ...:SPLIT")
    name, split = found[1], found[2] or "train"
    path = Path(name).expanduser()
    if is_table(path) and os.path.isfile(path):
        return from_file(path)
    try:
        dataset = open_dataset(name, split, what="prompts")
        text = text_column(dataset.column_names, source)
        # Without the other columns, which may be images.
        wanted = [text, *(["weight"] if "weight" in dataset.column_names else [])]
        rows = read_columns(dataset, wanted, source)
        if not rows:
            raise DataError(f"the data set {name} has no rows in its split {split}")
        return _merged([_entry(row, text, f"{source}, row {number}") for number, row in enumerate(rows)])
    except DataError as error:
        raise PromptError(str(error)) from error


def _entry(row: Mapping[str, Any], text: str, where: str) -> tuple[str, float]:
    prompt, weight = row.get(text), row.get("weight")
    expected = f"{where}: expected a {text}" + (" and a weight" if "weight" in row else "")
    if not isinstance(prompt, str) or not tidy(prompt):
        raise PromptError(f"{expected}, but the {text} is {repr(prompt)[:80]}; {' or '.join(TEXT)} is what is read")
    return tidy(checked_text(prompt, where, text)), _weight(weight, expected)


def _weight(given: Any, expected: str) -> float:
    """A weight as a number, 1 where there is none."""
    if given is None or (isinstance(given, str) and not given.strip()):
        return 1.0
    try:
        number = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        comma = " with a decimal point" if isinstance(given, str) and "," in given else ""
        raise PromptError(f"{expected}, but the weight is {given!r}: it must be a number greater than 0{comma}")
    return number


def _merged(pairs: Sequence[tuple[str, float]]) -> PromptSet:
    """Each prompt once, with the weights of all its rows: data sets have a prompt for each of its images."""
    weights: dict[str, float] = {}
    for prompt, weight in pairs:
        weights[prompt] = weights.get(prompt, 0.0) + weight
    return PromptSet(tuple(weights), tuple(weights.values()))
