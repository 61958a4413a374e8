"""Images with captions that others made, out of folders, tables of files and Hugging Face data sets."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor

from tastemaker.data.hf_datasets import as_stored, base_folder, open_dataset, raw_row, read_columns
from tastemaker.data.images import check_header, image_path, image_source, read_image, to_tensor
from tastemaker.data.tables import TABLES, checked_text, is_table, read_table, read_text, text_column, tidy
from tastemaker.errors import DataError

opened = read_image
"""An RGB image from whatever tables and data sets have."""


def fitted(image: Image.Image, height: int, width: int) -> Tensor:
    """[3,height,width] in [0,1]: scaled to cover that size (bilinear, antialiased), and cut at both ends.

    An image of that size stays as it is, to the bit.
    """
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return to_tensor(image)


def caption(value: Any, where: str) -> str:
    """A caption as text without blanks around it, which may be empty. Raises DataError."""
    return tidy(checked_text(value, where, "caption"))


def digest(rows: Any) -> str:
    """SHA-256 of lists of text and numbers, by which a resumed run knows its data again."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass(frozen=True)
class Captioned:
    """Images with captions, read when they are asked for."""

    captions: tuple[str, ...]
    source: Callable[[int], Any]
    """What to open for an image."""
    where: Callable[[int], str]
    """Where it comes from, for messages."""

    def __len__(self) -> int:
        return len(self.captions)

    def image(self, index: int, height: int, width: int) -> Tensor:
        """[3,height,width] in [0,1]. Raises DataError with its row where the image is unreadable."""
        return fitted(read_image(self.source(index), self.where(index)), height, width)


def load_captioned(source: str, split: str = "train") -> Captioned:
    """Images with captions, the first of these that `source` is:

    - a table, or a folder with one named metadata (.jsonl, .csv, ...): file_name, and prompt, caption or text;
    - a folder of images, each with its caption in a .txt file of the same name;
    - a data set with the columns image and prompt, caption or text.

    Raises DataError.
    """
    path = Path(source).expanduser()
    if is_table(path) and not os.path.isdir(path):
        return _listed(path.parent, read_table(path))
    if os.path.isdir(path):
        if (table := table_named(path, "metadata")) is not None:
            return _listed(path, read_table(table))
        if (found := _beside(path)) is not None:
            return found
    dataset = open_dataset(source, split)
    text = text_column(dataset.column_names, source)
    if "image" not in dataset.column_names:
        raise DataError(f"{source}: no column image; the columns are {', '.join(dataset.column_names)}")
    rows = read_columns(dataset, [text], source)
    captions = tuple(caption(row[text], f"{source}, row {number}") for number, row in enumerate(rows))
    if not captions:
        raise DataError(f"the data set {source} has no rows in its split {split}")
    images = as_stored(dataset, ["image"])

    def where(index: int) -> str:
        return f"{source}, row {index}"

    def stored(index: int) -> Any:
        return image_source(raw_row(images, index, where(index))["image"], where(index), base_folder(source))

    return Captioned(captions, stored, where)


def table_named(folder: Path, stem: str) -> Path | None:
    """The table of this name in a folder, in any case; the first of TABLES' order where there are several."""
    found = [item for item in _files(folder) if item.stem.lower() == stem and is_table(item)]
    order = (".jsonl", *TABLES)
    return min(found, key=lambda item: (order.index(item.suffix.lower()), item.name), default=None)


def _files(folder: Path) -> Iterable[Path]:
    # Names that begin with a dot are other programs' (macOS leaves ._0.jpg beside 0.jpg).
    return sorted(item for item in folder.iterdir() if not item.name.startswith(".") and item.is_file())


def _beside(folder: Path) -> Captioned | None:
    """A folder's images with the captions of the text files beside them; None where there are no such files."""
    files = list(_files(folder))
    kinds = Image.registered_extensions()
    images = [file for file in files if file.suffix.lower() in kinds]
    texts = {file.stem: file for file in files if file.suffix.lower() == ".txt"}
    pairs = [(image, texts.get(image.stem)) for image in images]
    lacking = [image for image, text in pairs if text is None]
    if len(lacking) == len(images):
        return None
    if lacking:
        raise DataError(
            f"{len(lacking)} of the {len(images)} images in {folder} have no caption, {lacking[0].name} among them: "
            f"expected it in {lacking[0].stem}.txt"
        )
    for image in images:
        check_header(image, str(image))
    captions = tuple(caption(" ".join(read_text(text).split()), str(text)) for _, text in pairs if text is not None)
    return Captioned(captions, lambda i: images[i], lambda i: str(images[i]))


def _listed(folder: Path, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Captioned:
    text = text_column(list(rows[0][1]), rows[0][0])
    files = []
    for where, row in rows:
        if not isinstance(row.get("file_name"), str):
            raise DataError(f"{where}: no file_name, which is the path of an image in {folder}")
        files.append(image_path(row["file_name"], where, folder))
        check_header(files[-1], where)
    captions = tuple(caption(row.get(text), where) for where, row in rows)
    return Captioned(captions, lambda i: files[i], lambda i: rows[i][0])
