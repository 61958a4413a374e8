"""Pictures that others made: out of tables of files and Hugging Face data sets, at the size of a model."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tastemaker.errors import DataError
from tastemaker.hub import hub_cause

TEXT = ("prompt", "caption", "text")
"""Columns that may hold what a picture shows, the first that is there."""


def opened(value: Any, where: str) -> Image.Image:
    """An RGB picture from a path, the bytes of a file, or what the `datasets` library has for either.

    Raises DataError, beginning with `where`, for what is not there or no picture.
    """
    if isinstance(value, Mapping):  # an Image column that is not decoded
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, Image.Image | str | Path | bytes):
        raise DataError(f"{where}: expected a picture, but found {type(value).__name__}")
    with _readable(value, where):
        if isinstance(value, Image.Image):
            return value.convert("RGB")
        with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as image:
            return ImageOps.exif_transpose(image).convert("RGB")


def look(path: Path, where: str) -> None:
    """Reads a picture's header, and not its pixels, which would take minutes for many. Raises DataError."""
    with _readable(path, where), Image.open(path):
        pass


@contextmanager
def _readable(value: Any, where: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{where}: there is no picture {value}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's, by format
        raise DataError(f"{where}: the picture cannot be read ({error})") from error


def fitted(image: Image.Image, side: int) -> Tensor:
    """[3,side,side] in [0,1]: the shorter side scaled to `side` (bilinear, antialiased), the longer cut at both ends.

    A picture of that size stays as it is, to the bit.
    """
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def table(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a .jsonl or .csv file, each with its place (`file:line`).

    Raises DataError for a file that is missing, empty, not UTF-8 or not of its format.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as text in UTF-8: {error}") from error
    rows = list(_csv(path, text) if path.suffix == ".csv" else _jsonl(path, text))
    if not rows:
        raise DataError(f"{path} is empty: expected a row a line")
    return rows


def _jsonl(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON ({error.msg}): expected an object a line") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: expected a JSON object, but found {line.strip()[:80]}")
            yield f"{path}:{number}", row


def _csv(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"{path}:{reader.line_num}: expected {len(reader.fieldnames or ())} columns")
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from error


def open_dataset(source: str, split: str, what: str = "pictures") -> Any:
    """A `datasets.Dataset`: a folder that the `datasets` library reads or wrote, a parquet file, or a name on the hub.

    Raises DataError where the library is missing, or cannot load it.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{source} is read by the package datasets, which is not installed: pip install 'tastemaker[data]'"
        ) from error
    local = Path(source).expanduser()
    if not local.exists() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise DataError(f"there are no {what} at {source}: give a folder, a table, or a hub name like owner/name")
    saved = any((local / name).is_file() for name in ("state.json", "dataset_dict.json"))
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        if local.is_file():
            found: Any = datasets.load_dataset("parquet", data_files={split: str(local)})
        elif saved:
            found = datasets.load_from_disk(str(local))
        else:
            found = datasets.load_dataset(str(local) if local.exists() else source)
    except Exception as error:  # the library's, fsspec's, arrow's and the hub's kinds
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        cause = None if local.exists() else hub_cause(error, source)
        raise DataError(f"cannot load the data set {source}: {cause or reason}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    if isinstance(found, datasets.Dataset):
        return found
    if split not in found:
        raise DataError(f"the data set {source} has no split {split!r}; it has {', '.join(sorted(found))}")
    return found[split]


def text_column(names: Sequence[str], where: str) -> str:
    """The column of the captions. Raises DataError where there is none."""
    for name in TEXT:
        if name in names:
            return name
    raise DataError(f"{where}: no column {' or '.join(TEXT)}; the columns are {', '.join(names)}")


def caption(value: Any, where: str) -> str:
    """A caption as text, which may be empty. Raises DataError."""
    if not isinstance(value, str):
        raise DataError(f"{where}: expected a caption, but found {type(value).__name__}")
    return value


def digest(rows: Any) -> str:
    """SHA-256 of lists of text and numbers, by which a resumed run knows its data again."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass(frozen=True)
class Captioned:
    """Pictures with captions, read when they are asked for."""

    captions: tuple[str, ...]
    source: Callable[[int], Any]
    """What to open for a picture."""
    place: Callable[[int], str]
    """Where it comes from, for messages."""

    def __len__(self) -> int:
        return len(self.captions)


def load_captioned(source: str, split: str = "train") -> Captioned:
    """Pictures with captions: a folder with a metadata.jsonl or .csv (file_name, and prompt, caption or text), or a
    data set with the columns image and one of those. Raises DataError."""
    folder = Path(source).expanduser()
    for name in ("metadata.jsonl", "metadata.csv"):
        if (folder / name).is_file():
            return _listed(folder, table(folder / name))
    dataset = open_dataset(source, split)
    text = text_column(dataset.column_names, source)
    if "image" not in dataset.column_names:
        raise DataError(f"{source}: no column image; the columns are {', '.join(dataset.column_names)}")
    captions = tuple(
        caption(value, f"{source}, row {number}")
        for number, value in enumerate(dataset.select_columns([text])[:][text])
    )
    if not captions:
        raise DataError(f"the data set {source} has no rows in its split {split}")
    images = dataset.select_columns(["image"])
    return Captioned(captions, lambda i: images[i]["image"], lambda i: f"{source}, row {i}")


def _listed(folder: Path, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Captioned:
    text = text_column(list(rows[0][1]), rows[0][0])
    for where, row in rows:
        if not isinstance(row.get("file_name"), str):
            raise DataError(f"{where}: no file_name, which is the path of a picture in {folder}")
        look(folder / row["file_name"], where)
    captions = tuple(caption(row.get(text), where) for where, row in rows)
    return Captioned(captions, lambda i: folder / rows[i][1]["file_name"], lambda i: rows[i][0])
