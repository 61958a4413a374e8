"""Pairs of pictures that somebody has compared, for methods that learn from given preferences (Diffusion-DPO)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tastemaker.errors import DataError
from tastemaker.pictures import caption, digest, fitted, look, open_dataset, opened, table, text_column

PICTURES = (("image_0", "image_1"), ("jpg_0", "jpg_1"))
VERDICTS = (("preferred",), ("label_0", "label_1"), ("best_image_uid", "image_0_uid", "image_1_uid"))
"""Columns that say which picture is preferred, the first that are all there."""
MARKS = ("has_label", "are_different")
"""Pick-a-Pic's columns of which a False leaves a row out."""


@dataclass(frozen=True)
class PairSet:
    """N pairs of pictures, read when they are asked for."""

    prompts: tuple[str, ...]
    """N captions."""
    sources: Callable[[int], tuple[Any, Any]]
    """What to open for the preferred and for the other picture of a pair."""
    places: Callable[[int], str]
    """Where a pair comes from, for messages."""
    digest: str
    """SHA-256 of the captions, of who is preferred, and of a table's paths; not of the pictures."""
    ties: int = 0
    """Rows left out since neither picture is preferred."""

    def __len__(self) -> int:
        return len(self.prompts)

    def pictures(self, index: int, side: int) -> Tensor:
        """[2,3,side,side] in [0,1]: the preferred picture, and the other. Raises DataError where one is unreadable."""
        where = self.places(index)
        return torch.stack([fitted(opened(source, where), side) for source in self.sources(index)])


def load_pairs(source: str, split: str = "train") -> PairSet:
    """The pairs of a folder with a pairs.jsonl, of a .jsonl or .csv file, or of a Hugging Face data set.

    Columns: prompt, caption or text; image_0 and image_1, or jpg_0 and jpg_1; and who is preferred, as `preferred` (0,
    1, or `tie`), as label_0 and label_1 (the larger one; equal is a tie), or as best_image_uid among image_0_uid and
    image_1_uid (else `tie`, or empty). Ties are left out. Paths are relative to the table. That a table's
    pictures are there is seen at once, the pixels of all are read when they are used. Raises DataError.
    """
    path = Path(source).expanduser()
    if path.is_dir() and (path / "pairs.jsonl").is_file():
        path = path / "pairs.jsonl"
    if path.suffix in (".jsonl", ".csv"):
        return _from_table(path)
    return _from_dataset(open_dataset(source, split), source)


def _from_table(path: Path) -> PairSet:
    rows = table(path)
    names = list(rows[0][1])
    text, pictures, verdict = text_column(names, str(path)), _pictures(names, str(path)), _verdict(names, str(path))
    marks = [name for name in MARKS if name in names]
    kept: list[tuple[str, str, tuple[Path, Path]]] = []
    for where, row in rows:
        missing = [name for name in (text, *pictures, *verdict) if name not in row]
        if missing:
            raise DataError(f"{where}: no {missing[0]}, which the first row has")
        better = preferred({name: row.get(name) for name in (*verdict, *marks)}, where)
        if better is None:
            continue
        files = [path.parent / _file(row[name], where) for name in pictures]
        for file in files:
            look(file, where)
        kept.append((caption(row[text], where), where, (files[better], files[1 - better])))
    _some(kept, len(rows), str(path))
    prompts = tuple(prompt for prompt, _, _ in kept)
    mark = digest([[prompt, *(os.path.relpath(file, path.parent) for file in files)] for prompt, _, files in kept])
    return PairSet(prompts, lambda i: kept[i][2], lambda i: kept[i][1], mark, len(rows) - len(kept))


def _from_dataset(dataset: Any, source: str) -> PairSet:
    names = dataset.column_names
    text, pictures, verdict = text_column(names, source), _pictures(names, source), _verdict(names, source)
    said = (text, *verdict, *(name for name in MARKS if name in names))
    # Without the pictures, which may be hundreds of gigabytes.
    columns = dataset.select_columns(list(said))[:]
    prompts, kept = [], []
    for number, values in enumerate(zip(*(columns[name] for name in said), strict=True)):
        row, where = dict(zip(said, values, strict=True)), f"{source}, row {number}"
        better = preferred(row, where)
        if better is not None:
            prompts.append(caption(row[text], where))
            kept.append((number, better))
    _some(kept, len(dataset), source)
    images = dataset.select_columns(list(pictures))

    def sources(index: int) -> tuple[Any, Any]:
        number, better = kept[index]
        row = images[number]
        return row[pictures[better]], row[pictures[1 - better]]

    mark, ties = digest([prompts, kept]), len(dataset) - len(kept)
    found = PairSet(tuple(prompts), sources, lambda i: f"{source}, row {kept[i][0]}", mark, ties)
    found.pictures(0, 8)  # a column that holds no pictures is found out now
    return found


def preferred(row: Mapping[str, Any], where: str) -> int | None:
    """Which picture of a row is preferred, 0 or 1, None for a tie. Raises DataError for other answers."""
    if any(str(row[name]).lower() in ("false", "0") for name in MARKS if name in row):
        return None
    if "preferred" in row:
        answer = str(row["preferred"]).strip().lower()
        if answer in ("tie", "none", ""):
            return None
        if answer not in ("0", "1"):
            raise DataError(f"{where}: preferred is {row['preferred']!r}, but must be 0, 1 or tie")
        return int(answer)
    if "label_0" in row:
        try:
            one, two = float(row["label_0"]), float(row["label_1"])
        except (TypeError, ValueError):
            one = two = math.nan
        if math.isnan(one) or math.isnan(two):
            raise DataError(f"{where}: label_0 and label_1 are {row['label_0']!r} and {row['label_1']!r}, not numbers")
        return None if one == two else int(two > one)
    best = row["best_image_uid"]
    if best in (None, "", "tie"):
        return None
    if best not in (row["image_0_uid"], row["image_1_uid"]):
        raise DataError(f"{where}: best_image_uid is {best!r}, which is neither picture's uid, nor tie")
    return int(best == row["image_1_uid"])


def _pictures(names: Sequence[str], where: str) -> tuple[str, str]:
    for pair in PICTURES:
        if all(name in names for name in pair):
            return pair
    raise DataError(f"{where}: no columns image_0 and image_1, nor jpg_0 and jpg_1; it has {', '.join(names)}")


def _verdict(names: Sequence[str], where: str) -> tuple[str, ...]:
    for columns in VERDICTS:
        if all(name in names for name in columns):
            return columns
    raise DataError(
        f"{where}: nothing says which picture is preferred: expected a column preferred (0, 1 or tie), label_0 and "
        f"label_1, or best_image_uid with image_0_uid and image_1_uid; it has {', '.join(names)}"
    )


def _file(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: expected the path of a picture, but found {value!r}")
    return value


def _some(kept: Sequence[Any], rows: int, where: str) -> None:
    if not kept:
        raise DataError(f"{where} has {rows} rows and in none of them is a picture preferred: ties teach nothing")
