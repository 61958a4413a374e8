"""Hugging Face data sets: opened by the `datasets` library, and read as they are stored.

Images are not decoded by the library, which would not say which row is damaged, and would download URLs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tastemaker.data.tables import renamed
from tastemaker.errors import DataError
from tastemaker.hub import hub_cause


def open_dataset(source: str, split: str, what: str = "images") -> Any:
    """A `datasets.Dataset`: a folder that the `datasets` library reads or wrote, a parquet file, or a name on the hub.

    Its columns' names are stripped and in lower case. Raises DataError where the library is missing, or cannot load it.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{source} is read by the package datasets, which is not installed: pip install 'tastemaker[data]'"
        ) from error
    local = Path(source).expanduser()
    there = os.path.exists(local)
    if not there and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise DataError(f"there are no {what} at {source}: give a folder, a table, or a hub name like owner/name")
    saved = there and any((local / name).is_file() for name in ("state.json", "dataset_dict.json"))
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        if there and local.is_file():
            found: Any = datasets.load_dataset("parquet", data_files={split: str(local)})
        elif saved:
            found = datasets.load_from_disk(str(local))
        else:
            found = datasets.load_dataset(str(local) if there else source)
    except Exception as error:  # the library's, fsspec's, arrow's and the hub's kinds
        cause = None if there else hub_cause(error, source)
        raise DataError(f"cannot load the data set {source}: {cause or _reason(error)}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    if not isinstance(found, datasets.Dataset):
        if split not in found:
            raise DataError(f"the data set {source} has no split {split!r}; it has {', '.join(sorted(found))}")
        found = found[split]
    found = found.with_format(None)  # one with tensors may have been saved
    new = {old: name for old, name in renamed(found.column_names).items() if old != name}
    return found.rename_columns(new) if new else found


def _reason(error: BaseException) -> str:
    """The library wraps what it found in errors that do not say it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def base_folder(source: str) -> Path | None:
    """The folder that relative paths in a local data set begin at: its own; None for one of the hub."""
    local = Path(source).expanduser()
    return local if os.path.isdir(local) else local.parent if os.path.isfile(local) else None


def read_columns(dataset: Any, names: Sequence[str], source: str) -> list[dict[str, Any]]:
    """Some columns of all rows, classes by their names. Raises DataError with the row where text is not UTF-8."""
    import datasets

    wanted = as_stored(dataset, names)
    try:
        rows: list[dict[str, Any]] = wanted[:].to_pylist()
    except UnicodeDecodeError:
        rows = [raw_row(wanted, index, f"{source}, row {index}") for index in range(len(wanted))]
    for name in wanted.column_names:
        feature = wanted.features[name]
        if isinstance(feature, datasets.ClassLabel):
            for row in rows:
                row[name] = row[name] if row[name] is None or row[name] < 0 else feature.int2str(row[name])
    return rows


def as_stored(dataset: Any, names: Sequence[str]) -> Any:
    """Some columns of a data set, for `raw_row`."""
    return dataset.select_columns(list(dict.fromkeys(names))).with_format("arrow")


def raw_row(stored: Any, index: int, where: str) -> dict[str, Any]:
    """A row of `as_stored`: an image as a mapping with `bytes` and `path`. Raises DataError."""
    try:
        return stored[index].to_pylist()[0]
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: text that is not UTF-8 ({error})") from error
    except Exception as error:  # a file that has changed or vanished under arrow
        raise DataError(f"{where}: cannot be read ({_reason(error)})") from error
