"""The image files of a labelling project, each under the SHA-256 of its bytes."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tastemaker.data.images import read_image
from tastemaker.errors import DataError, StorageError
from tastemaker.runs.atomic import replace_atomic, sync

MAX_PIXELS = 2**24
"""Most pixels of an image: 4096 x 4096."""
_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ImageFile:
    """An image of the project."""

    sha256: str
    width: int
    height: int
    size: int
    """Bytes of the file."""


def store_image(folder: Path, value: Any, where: str, base: Path | None = None, compressed: bool = True) -> ImageFile:
    """Stores an image as PNG in the folder `images` of a project, unless it is there, and returns its name.

    `value` and `base` are what `data.images.read_image` takes. The PNG has the pixels alone: what a file says of the
    model or prompt that made it would show labelers whose image it is. Where it is not `compressed`, all files of one
    width and height have the same number of bytes, which then does not say how detailed the image is either. Raises
    DataError, beginning with `where`, and StorageError.
    """
    image = read_image(value, where, base)
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{where}: the image has {image.width} x {image.height} pixels, but may have {MAX_PIXELS:,}")
    data = _png(image, compressed)
    name = hashlib.sha256(data).hexdigest()
    path = image_path(folder, name)
    try:
        if not path.is_file():
            new = not path.parent.exists()
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_atomic(path, data)
            if new:
                sync(path.parent.parent)
    except OSError as error:
        raise StorageError(f"cannot write the image {path}: {error.strerror or error}") from error
    return ImageFile(name, image.width, image.height, len(data))


def image_path(folder: Path, sha256: str) -> Path:
    """The file of an image in the project's folder. Raises ValueError for what is no SHA-256."""
    if not _NAME.fullmatch(sha256):
        raise ValueError("the name of an image is a SHA-256 of 64 hexadecimal digits")
    return folder / "images" / sha256[:2] / f"{sha256}.png"


def _png(image: Image.Image, compressed: bool) -> bytes:
    file = io.BytesIO()
    # A fresh image, since Pillow writes what it has read beside the pixels.
    plain = Image.frombytes("RGB", image.size, image.tobytes())
    plain.save(file, "PNG", compress_level=4 if compressed else 0)
    return file.getvalue()
