"""Tables of exports as files: Parquet, JSON lines and JSON, with images as bytes within them or as files beside them.

The same content gives the same bytes. Parquet needs pyarrow, which comes with `tastemaker[data]`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from tastemaker.data.tables import is_table, read_table
from tastemaker.errors import DataError, StorageError
from tastemaker.labelling.image_files import image_path
from tastemaker.runs import atomic

Kind = Literal["string", "int8", "int64", "float64", "bool", "bytes", "image", "json"]
"""`bytes`: an image's file. `image`: the same as the `datasets` library has it. `json`: any value; text in Parquet."""
ROWS_AT_ONCE = 64
"""Rows that are in memory together, each with its images."""


@dataclass(frozen=True)
class ImageCell:
    """An image of the project in a cell of a table."""

    sha256: str


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    kind: Kind


def pyarrow_parquet() -> ModuleType:
    """The module pyarrow.parquet. Raises DataError where it is not installed."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(
            "Parquet files need the package pyarrow, which is not installed: pip install 'tastemaker[data]', or choose "
            "JSON lines with --table jsonl"
        ) from error
    return parquet


def read_image_file(folder: Path, sha256: str) -> bytes:
    """The bytes of a project's image, whose hash is checked. Raises DataError."""
    path = image_path(folder, sha256)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"the image {path} of the project cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"the image {path} of the project is damaged: its content is not what its name says")
    return data


def write_parquet(path: Path, columns: Sequence[Column], rows: Iterable[Mapping[str, Any]], images: Path) -> None:
    """Writes rows, whose ImageCells become bytes of the images of the project in `images`. Raises DataError,
    StorageError."""
    parquet = pyarrow_parquet()
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types = {
        "string": pa.string(), "int8": pa.int8(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_(),
        "bytes": pa.binary(), "image": image, "json": pa.string(),
    }  # fmt: skip
    schema = pa.schema([(column.name, types[column.kind]) for column in columns])
    if any(column.kind == "image" for column in columns):
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": _features(columns)}})})

    def cell(value: Any, kind: Kind) -> Any:
        if isinstance(value, ImageCell):
            data = read_image_file(images, value.sha256)
            return data if kind == "bytes" else {"bytes": data, "path": f"{value.sha256}.png"}
        return _dumped(value) if kind == "json" and value is not None else value

    with _storing(path), parquet.ParquetWriter(path, schema) as writer:
        for chunk in _chunks(rows):
            cells = [{column.name: cell(row[column.name], column.kind) for column in columns} for row in chunk]
            writer.write_table(pa.Table.from_pylist(cells, schema))
    _flush(path)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]], images: Path) -> None:
    """Writes rows as JSON lines. Images become paths, and their files are copied into the folder `images` beside the
    table. Raises DataError, StorageError."""
    text = "".join(_dumped(_with_paths(row, images, path.parent / "images", "images/")) + "\n" for row in rows)
    with _storing(path):
        atomic.write(path, text.encode())


def write_array(path: Path, rows: Iterable[Mapping[str, Any]], images: Path, into: Path, prefix: str) -> None:
    """Writes rows as one JSON array. Images become their names behind `prefix`, and their files are copied to `into`.
    Raises DataError, StorageError."""
    listed = [_with_paths(row, images, into, prefix) for row in rows]
    with _storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(path, (json.dumps(listed, ensure_ascii=False, indent=1) + "\n").encode())


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a Parquet, JSON or CSV file with where they are. Raises DataError."""
    if is_table(path):
        yield from read_table(path)
        return
    if path.suffix.lower() != ".parquet":
        raise DataError(f"{path} is no table: expected a name that ends in .parquet, .jsonl, .json or .csv")
    parquet = pyarrow_parquet()
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except DataError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error


def _with_paths(row: Mapping[str, Any], images: Path, into: Path, prefix: str) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, ImageCell):
            _copy(images, value.sha256, into / f"{value.sha256}.png")
            return f"{prefix}{value.sha256}.png"
        return [plain(one) for one in value] if isinstance(value, list) else value

    return {name: plain(value) for name, value in row.items()}


def _copy(images: Path, sha256: str, target: Path) -> None:
    if not target.exists():
        data = read_image_file(images, sha256)
        with _storing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(target, data)


def copy_images(images: Path, names: Iterable[str], folder: Path) -> None:
    """Copies images of a project as a project has them, checking their hashes. Raises DataError, StorageError."""
    for name in names:
        _copy(images, name, image_path(folder, name))


def _features(columns: Sequence[Column]) -> dict[str, Any]:
    names = {"json": "string", "bytes": "binary"}
    return {
        column.name: {"_type": "Image"}
        if column.kind == "image"
        else {"dtype": names.get(column.kind, column.kind), "_type": "Value"}
        for column in columns
    }


def _chunks(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    left = iter(rows)
    while chunk := list(islice(left, ROWS_AT_ONCE)):
        yield chunk


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@contextmanager
def _storing(path: Path) -> Iterator[None]:
    """Turns errors of the file system into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
