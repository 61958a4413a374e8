"""Image files of a project, as they are sent to labelers."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tastemaker.labelling.image_files import image_path


def read_image_file(folder: Path, sha256: str, size: int) -> bytes | None:
    """The bytes of an image of the project, which the database says to be so many; None where they are not there.

    Symbolic links within the folder of images are not followed.
    """
    path = image_path(folder, sha256)
    if path.parent.is_symlink():
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return None
        return file.read(size)
