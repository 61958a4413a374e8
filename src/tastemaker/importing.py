"""Importing what users wrote, from the folder that a command runs in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def working_directory_first() -> Iterator[None]:
    """A context in which modules of the working directory are imported first; a user's own are there.

    Console scripts do not search it. Afterwards it comes last in the search path, since a file there may have the name
    of a module that has not been imported yet.
    """
    folder = str(Path.cwd())
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        sys.path.append(folder)
