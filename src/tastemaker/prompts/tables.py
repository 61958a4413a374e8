"""Prompts out of tables with columns: .csv files and Hugging Face data sets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tastemaker.errors import DataError, PromptError
from tastemaker.pictures import TEXT, open_dataset, table, text_column
from tastemaker.prompts import PromptSet, checked_weight


def from_csv(path: Path) -> PromptSet:
    """The prompts of a .csv file with a header. Raises PromptError."""
    try:
        rows = table(path)
        text = text_column(list(rows[0][1]), str(path))
    except DataError as error:
        raise PromptError(str(error)) from error
    return _merged([_entry(row, text, where) for where, row in rows])


def from_dataset(source: str) -> PromptSet:
    """The prompts of `NAME` or `NAME:SPLIT`, the split `train` when left out. Raises PromptError."""
    found = re.fullmatch(r"(.+?)(?::(\w+))?", source, re.DOTALL)
    if found is None:
        raise PromptError("dataset: names no data set: expected dataset:FOLDER, dataset:OWNER/NAME or ...:SPLIT")
    name, split = found[1], found[2] or "train"
    try:
        dataset = open_dataset(name, split, what="prompts")
        text = text_column(dataset.column_names, source)
    except DataError as error:
        raise PromptError(str(error)) from error
    wanted = [text, *(["weight"] if "weight" in dataset.column_names else [])]
    # Without the other columns, which may be pictures.
    columns = dataset.select_columns(wanted)[:]
    rows = [dict(zip(wanted, values, strict=True)) for values in zip(*(columns[key] for key in wanted), strict=True)]
    if not rows:
        raise PromptError(f"the data set {name} has no rows in its split {split}")
    return _merged([_entry(row, text, f"{source}, row {number}") for number, row in enumerate(rows)])


def _entry(row: Mapping[str, Any], text: str, where: str) -> tuple[str, float]:
    prompt, weight = row[text], row.get("weight")
    expected = f"{where}: expected a {text}" + (" and a weight" if "weight" in row else "")
    if not isinstance(prompt, str) or not prompt.strip():
        raise PromptError(f"{expected}, but the {text} is {prompt!r}; {' or '.join(TEXT)} is what is read")
    if isinstance(weight, str):
        try:
            weight = float(weight) if weight.strip() else None
        except ValueError:
            raise PromptError(f"{expected}, but the weight is {weight!r}: it must be a number greater than 0") from None
    return prompt.strip(), 1.0 if weight is None else checked_weight(weight, expected)


def _merged(pairs: Sequence[tuple[str, float]]) -> PromptSet:
    """Each prompt once, with the weights of all its rows: data sets have a prompt for each of its pictures."""
    weights: dict[str, float] = {}
    for prompt, weight in pairs:
        weights[prompt] = weights.get(prompt, 0.0) + weight
    return PromptSet(tuple(weights), tuple(weights.values()))
