"""Files that are whole or absent: every write of a run goes through here, and is on disk when the call returns."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """A new file, on disk. Raises OSError."""
    _put(path, data, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def append(path: Path, data: bytes) -> None:
    """`data` after what the file holds, on disk. Raises OSError; the file may then end in a part of `data`."""
    _put(path, data, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def replace_atomic(path: Path, data: bytes) -> None:
    """Puts `data` in the place of the file, which holds the old or the new content at any moment. Raises OSError."""
    temporary = path.with_name(f".tmp-{path.name}")
    write(temporary, data)
    move(temporary, path)


def move(source: Path, target: Path) -> None:
    """Renames within one file system, and brings the new name to disk. Raises OSError."""
    os.replace(source, target)
    sync(target.parent)


def sync(folder: Path) -> None:
    """Brings a folder's names to disk, without which a file may be whole and have none. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(folder: Path) -> None:
    """Takes a folder away; under another name first, so that no half of it is ever taken for the whole."""
    hidden = folder.with_name(f".old-{folder.name}")
    if hidden.exists():
        shutil.rmtree(hidden)
    os.replace(folder, hidden)
    shutil.rmtree(hidden)


def tidy(folder: Path) -> None:
    """Takes away what a killed process left half-made under the folder."""
    for leftover in [*folder.rglob(".tmp-*"), *folder.rglob(".old-*")]:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def _put(path: Path, data: bytes, flags: int) -> None:
    handle = os.open(path, flags, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)
