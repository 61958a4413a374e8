"""One process at a time writes to a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tastemaker.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Inside it no other block of this kind, in this process or another, begins on the same folder.

    The operating system takes the lock back when its process ends, however it ends, and nothing is left in the folder.
    On Windows, and on file systems that cannot lock a folder, nothing is locked. Raises ConfigError where another holds
    the lock.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process is writing to {folder}: wait until it has ended, or give another folder"
            ) from None
        except OSError:
            pass  # a network file system without locks of folders
        yield
    finally:
        os.close(handle)
