"""Images that users bring: any file that Pillow opens, as RGB with 8 bits a channel (docs/guides/images.md).

Whatever takes an image from a user reads it here, so that depth, transparency, orientation and damage are handled the
same everywhere.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from tastemaker.data.tables import near_match, shown
from tastemaker.errors import DataError

_ORIENTATION = 0x0112
_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What makes an image upright, by its EXIF orientation (as in Pillow's ImageOps.exif_transpose)."""
_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]+://|data:|file:)")
_HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def read_image(value: Any, where: str, folder: Path | None = None) -> Image.Image:
    """An RGB image, 8 bits a channel and upright, from a path, the bytes of a file, a PIL image, or a mapping with
    `bytes` or `path` (an Image column of the `datasets` library that is not decoded).

    A relative path is one in `folder`, or in the current folder without one. Raises DataError, beginning with `where`,
    for what is missing, damaged, no image, or of a kind whose colours are not defined.
    """
    found = image_source(value, where, folder)
    if isinstance(found, Image.Image):
        with _reading(where):
            return upright_rgb(found)
    with _reading(where, found), Image.open(io.BytesIO(found) if isinstance(found, bytes) else found) as image:
        return upright_rgb(image)


def image_source(value: Any, where: str, folder: Path | None = None) -> Image.Image | bytes | Path:
    """What to open for an image as a table or data set has it: for a path, a file that is there. Raises DataError."""
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, Image.Image | bytes):
        return value
    return image_path(value, where, folder)


def check_header(path: Path, where: str) -> None:
    """Reads an image's header, and not its pixels, which would take minutes for many. Raises DataError."""
    with _reading(where, path), Image.open(path):
        pass


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as [3,H,W] in [0,1], float32."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def image_path(value: Any, where: str, folder: Path | None = None) -> Path:
    """The file that a table names. Raises DataError where it names none, one that is not there, or a URL.

    Backslashes are taken for separators where there is no file with backslashes in its name.
    """
    if not isinstance(value, str | Path) or not str(value).strip():
        raise DataError(f"{where}: expected an image or its path, but found {_described(value)}")
    if _URL.match(str(value)):
        raise DataError(
            f"{where}: the image is a URL ({shown(value)}), and images are not downloaded: download it and give the "
            "path of the file"
        )
    base, given = Path() if folder is None else folder, str(value)
    windows = PureWindowsPath(given.strip())
    spellings = [given, given.strip(), *([] if windows.drive else [windows.as_posix()])]
    for path in [base / spelling for spelling in spellings]:
        if os.path.isfile(path):  # unlike Path.is_file, no error for a name that is too long
            return path
    path = base / spellings[-1]
    if os.path.isdir(path):
        raise DataError(f"{where}: expected an image file, but {shown(path)} is a folder")
    near = near_match(path)
    raise DataError(f"{where}: there is no image {shown(path)}" + (f"; did you mean {shown(near)}?" if near else ""))


def _described(value: Any) -> str:
    return "none" if value is None else repr(value) if isinstance(value, str | Path) else type(value).__name__


@contextmanager
def _reading(where: str, source: bytes | Path | None = None) -> Iterator[None]:
    """Turns whatever a decoder raises into a DataError.

    Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, struct.error,
    zlib.error, OverflowError, MemoryError, DecompressionBombError and others for damaged files.
    """
    image = f"the image {shown(source)}" if isinstance(source, Path) else "the image"
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {image} {error}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{where}: {image} cannot be read: {_unidentified(source)}") from error
    except Exception as error:
        reason = shown(" ".join(str(error).split()))
        kind = type(error).__name__
        raise DataError(f"{where}: {image} cannot be read ({f'{kind}: {reason}' if reason else kind})") from error


def _unidentified(source: bytes | Path | None) -> str:
    """Why a file is none that Pillow knows."""
    start = b""
    if isinstance(source, Path):
        with source.open("rb") as file:
            start = file.read(40)
    elif source is not None:
        start = source[:40]
    if not start:
        return "it is empty"
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF:
        return "it is a HEIC file, for which Pillow has no decoder: convert it to PNG or JPEG"
    return f"it is in no format that Pillow knows, or damaged at its beginning (it begins with {start!r})"


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image (of an animation the first one) as RGB, turned as its EXIF orientation says.

    - Grey values of 16 bits are scaled by 255 / 65535; floats in [0, 1] by 255, and floats beyond 1 are levels up to
      255. 32-bit integers are taken for 16 bits, as Pillow writes and reads them. Other values raise DataError.
    - Transparent pixels are put on white.
    - CIELAB is converted by its ICC definition (D50). Embedded colour profiles and gamma are not applied, as in the
      public training codes (diffusers, torchvision).
    - Broken EXIF data are ignored.

    Raises DataError, and whatever Pillow raises for damaged files.
    """
    key = _transparent_key(image)
    # First of all: Pillow turns TIFF files itself when it loads them.
    image.load()
    method = _TRANSPOSED.get(_orientation(image))
    plain = _rgb(image, key)
    return plain if method is None else plain.transpose(method)


def _orientation(image: Image.Image) -> Any:
    try:
        found = image.getexif().get(_ORIENTATION)
        return int(found) if isinstance(found, int | float) else None
    except Exception:  # Pillow reads EXIF data only now, and damaged ones raise anything
        return None


def _transparent_key(image: Image.Image) -> Any:
    """The transparent colour of a PNG without alpha, in the levels that Pillow reads pixels as; None without one."""
    key = image.info.get("transparency")
    stored = image.tile[0][3] if isinstance(image, ImageFile.ImageFile) and image.tile else None
    if image.mode == "L" and isinstance(key, int):
        return key * {"L;2": 85, "L;4": 17}.get(str(stored), 1)  # Pillow scales the pixels, and not the key
    if image.mode == "RGB" and isinstance(key, tuple) and stored == "RGB;16B":
        return tuple(value >> 8 for value in key)  # of 16 bits Pillow keeps the upper 8
    return key


def _rgb(image: Image.Image, key: Any) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        grey = Image.fromarray(_levels(values, image.mode))
        if not isinstance(key, int):
            return grey.convert("RGB")
        opaque = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        return _on_white(Image.merge("LA", (grey, opaque)))
    if image.mode == "LAB":
        from PIL import ImageCms

        names = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.applyTransform(image, ImageCms.buildTransform(*names, "LAB", "RGB"))
        if converted is None:
            raise DataError("has CIELAB colours that cannot be converted")
        return converted
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return _on_white(image.convert("LA") if image.mode == "La" else image)
    if key is not None and image.mode in ("1", "L", "P", "RGB"):
        image = image.copy()
        image.info["transparency"] = key
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _levels(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values [H,W] of more than 8 bits as uint8."""
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())  # NaN where any value is NaN
    if mode == "F":
        if not 0 <= low <= high <= 255:
            raise DataError(f"has floats from {low:g} to {high:g}, but must have them in [0, 1] or [0, 255]")
        return np.rint(values * 255 if high <= 1 else values).astype(np.uint8)
    if not 0 <= low <= high <= 65535:
        raise DataError(
            f"has 32-bit integers from {low:.0f} to {high:.0f}, whose scale is not known: save it with 8 or 16 bits"
        )
    return np.rint(values * (255 / 65535)).astype(np.uint8)
