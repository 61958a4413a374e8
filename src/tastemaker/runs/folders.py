"""Run folders: nothing is overwritten, and nothing half-made is left under a final name."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tastemaker.errors import ConfigError, StorageError
from tastemaker.runs import atomic


def check_new_folder(out: Path) -> None:
    """Raises ConfigError where `out` is in use, or where it could not be made. Leaves nothing behind."""
    parent = out
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"the output folder {out} exists already: give another with --out, or remove it")
        parent = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
        probe = parent / f".tastemaker-{os.getpid()}"
        probe.mkdir()
        probe.rmdir()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL, or not in the file system's encoding
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot write to {parent}: {reason}; give another output folder with --out") from error


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block ends well and disappears when it does not."""
    check_new_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    temporary = out.with_name(f".tmp-{out.name}-{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        if out.exists():
            out.rmdir()
        atomic.move(temporary, out)
    except OSError as error:
        raise StorageError(f"cannot make the run folder {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    """Takes away what killed processes left of the same folder; what one that lives is filling stays."""
    for leftover in out.parent.glob(f".tmp-{glob.escape(out.name)}-*"):
        owner = leftover.name.rpartition("-")[2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc/self").exists():
            shutil.rmtree(leftover, ignore_errors=True)
