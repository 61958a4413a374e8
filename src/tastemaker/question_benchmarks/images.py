"""The images that are asked about: those of a folder, or sampled into one, of which only missing ones are made."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tastemaker.data.images import image_path, read_image
from tastemaker.data.tables import read_records, shown, tidy
from tastemaker.diffusion.sde_types import SdeType
from tastemaker.errors import DataError, StorageError
from tastemaker.question_benchmarks.benchmark import Prompt
from tastemaker.question_benchmarks.rows import read_object
from tastemaker.runs import atomic

if TYPE_CHECKING:
    from tastemaker.diffusion.model import Model

QUALITY = 95
"""Of the JPEG that a model is shown."""
LISTING = "samples.json"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Picture:
    """An image of a prompt: a file, or a part of one that has several in a grid."""

    prompt: int
    """Index of the prompt in the benchmark."""
    name: str
    """How it is called in the answers."""
    path: Path
    grid: int = 1
    """The file has grid x grid images of one size."""
    cell: int = 0
    """Which of them it is, row by row."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that tell it from other images. Raises DataError."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise DataError(f"the image {self.path} cannot be read: {error.strerror or error}") from error
        return hashlib.sha256(f"{self.grid},{self.cell};".encode() + content).hexdigest()[:16]

    def image(self) -> Image.Image:
        """The image as RGB. Raises DataError."""
        whole = read_image(self.path, str(self.path))
        width, height = whole.width // self.grid, whole.height // self.grid
        row, column = divmod(self.cell, self.grid)
        return whole.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))

    def file(self, lossless: bool = False) -> bytes:
        """As a JPEG file, or without loss as a PNG file. Raises DataError."""
        buffer = io.BytesIO()
        if lossless:
            self.image().save(buffer, format="PNG")
        else:
            self.image().save(buffer, format="JPEG", quality=QUALITY)
        return buffer.getvalue()


def find_pictures(given: Path, prompts: Sequence[Prompt], n: int | None = None, grid: int = 1) -> list[Picture]:
    """The images of each prompt, at most `n` of one. Raises DataError where a prompt has none.

    `given` is one of
    - a folder with samples.json, as `tastemaker sample` writes it, or of `tastemaker ask`: by the prompts' texts;
    - a JSON file {PROMPT OR ID: FILE or [FILE, ...]}, files relative to it;
    - a folder of files ID.png, ID-0.png, ID-1.png, ... or ID_0.png, ..., also in folders where ids have a `/` in them.
    With a `grid` of 2 each file has 2 x 2 images; those that are all black are left out, as generators fill up with.
    """
    if (given / "images" / LISTING).is_file():  # a folder of `tastemaker ask`
        given = given / "images"
    if given.is_file():
        files, expected = _of_mapping(given), f"an entry with its text or id in {given}"
    elif (given / LISTING).is_file():
        files, expected = _of_listing(given), f"its text in {given / LISTING}"
    elif given.is_dir():
        files, expected = _of_names(given, {prompt.id for prompt in prompts}), f"a file ID.png or ID-0.png in {given}"
    else:
        raise DataError(
            f"there are no images at {shown(given)}: expected a folder, or a JSON file of prompts with files"
        )
    found: list[Picture] = []
    missing: list[Prompt] = []
    for index, prompt in enumerate(prompts):
        paths = files.get(prompt.id) or files.get(tidy(prompt.text)) or []
        own = [picture for path in paths for picture in _cut(index, path, given, grid)][:n]
        found += own
        missing += [] if own else [prompt]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(prompts)} prompts have no image; the first is {missing[0].id} "
            f"({shown(missing[0].text)[:80]!r}): expected {expected.replace('ID', missing[0].id)}"
        )
    return found


def _cut(index: int, path: Path, given: Path, grid: int) -> list[Picture]:
    base = given if given.is_dir() else given.parent
    name = os.path.relpath(path, base)
    if grid == 1:
        return [Picture(index, name, path)]
    parts = [Picture(index, f"{name}#{cell}", path, grid, cell) for cell in range(grid * grid)]
    whole = read_image(path, str(path))
    if min(whole.size) < grid:
        raise DataError(f"the image {path} is {whole.width}x{whole.height} pixels, too small for a grid of {grid}")
    return [part for part in parts if part.image().getbbox() is not None]


def _of_mapping(path: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for key, value in read_object(path).items():
        files = value if isinstance(value, list) else [value]
        found[tidy(key)] = [image_path(file, f"{path}, entry {shown(key)}", path.parent) for file in files]
    return found


def _of_listing(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for where, row in read_records(folder / LISTING):
        entries: Any = row.get("samples", [row]) if isinstance(row, Mapping) else [row]
        for entry in entries:
            if not isinstance(entry, Mapping) or not isinstance(entry.get("prompt"), str):
                raise DataError(f"{where}: expected an image with its file and prompt")
            found.setdefault(tidy(entry["prompt"]), []).append(image_path(entry.get("file"), where, folder))
    return found


def _of_names(folder: Path, ids: set[str]) -> dict[str, list[Path]]:
    found: dict[str, list[tuple[int, Path]]] = {}
    for base, _, names in os.walk(folder):
        for file in names:
            path = Path(base, file)
            if path.suffix.lower() not in ENDINGS:
                continue
            stem = path.relative_to(folder).with_suffix("").as_posix()
            numbered = re.fullmatch(r"(.+)[-_](\d+)", stem)
            if stem in ids:
                found.setdefault(stem, []).append((-1, path))
            elif numbered and numbered[1] in ids:
                found.setdefault(numbered[1], []).append((int(numbered[2]), path))
    return {name: [path for _, path in sorted(files)] for name, files in found.items()}


def sampled_pictures(folder: Path, prompts: Sequence[Prompt], n: int) -> list[Picture]:
    """The images that `sample_missing` makes, whether they are there or not: those of a prompt follow each other."""
    names = [(index, f"{index:05d}-{seed:02d}.png") for index in range(len(prompts)) for seed in range(n)]
    return [Picture(index, name, folder / name) for index, name in names]


def sample_missing(
    folder: Path,
    prompts: Sequence[Prompt],
    n: int,
    seed: int,
    load: Callable[[], Model],
    *,
    steps: int,
    guidance: float,
    eta: float,
    sde_type: SdeType,
    batch: int,
    advance: Callable[[int, int], None],
) -> None:
    """Samples those images that are not in the folder, with samples.json of all; the model is loaded if there are any.

    Calls `advance` with the number of images that are there by then, and of all. Raises ModelError, StorageError.
    """
    from tastemaker.diffusion.sde import make_sde
    from tastemaker.evaluation.images import fixed_draw, images, to_pil

    pictures = sampled_pictures(folder, prompts, n)
    missing = [index for index, picture in enumerate(pictures) if not picture.path.is_file()]
    advance(len(pictures) - len(missing), len(pictures))
    if not missing:
        return
    draw = fixed_draw([prompt.text for prompt in prompts], n, seed)
    listing = [
        {"file": picture.name, "prompt": prompt, "seed": number}
        for picture, prompt, number in zip(pictures, draw.prompts, draw.sample_index, strict=True)
    ]
    model = load()
    sde = make_sde(model, steps, eta, sde_type)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.replace_atomic(folder / LISTING, json.dumps(listing, indent=1).encode())
        for start in range(0, len(missing), batch):
            part = missing[start : start + batch]
            for index, image in zip(part, to_pil(images(model, draw.select(part), sde, guidance, batch)), strict=True):
                buffer = io.BytesIO()
                image.save(buffer, format="PNG")
                atomic.replace_atomic(pictures[index].path, buffer.getvalue())
            advance(len(pictures) - len(missing) + start + len(part), len(pictures))
    except OSError as error:
        raise StorageError(f"cannot write images into {folder}: {error.strerror or error}") from error
