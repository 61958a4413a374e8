"""Pairs of images that somebody has compared, for methods that learn from given preferences (Diffusion-DPO)."""

from __future__ import annotations

import bisect
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tastemaker.data.captioned_images import caption, digest, fitted, table_named
from tastemaker.data.hf_datasets import as_stored, base_folder, open_dataset, raw_row, read_columns
from tastemaker.data.images import check_header, image_path, read_image
from tastemaker.data.tables import is_table, read_table, read_text, text_column, tidy
from tastemaker.errors import DataError

FIRST_IS_PREFERRED = (("chosen", "rejected"), ("path1", "path2"))
"""Columns of images of which the first is preferred: of open-image-preferences-v1-binarized, and of HPDv3."""
IMAGES = (("image_0", "image_1"), ("jpg_0", "jpg_1"), ("image1", "image2"), *FIRST_IS_PREFERRED)
NUMBERS = (
    ("label_0", "label_1"),
    ("votes_image1", "votes_image2"),
    ("weighted_results_image1_preference", "weighted_results_image2_preference"),
)
"""Columns of which the larger number's image is preferred: of Pick-a-Pic, and of Rapidata."""
VERDICTS = (("preferred",), *NUMBERS, ("best_image_uid", "image_0_uid", "image_1_uid"))
"""Columns that say which image is preferred, the first that are all there."""
FOLDERS = (("w", "l"), ("win", "lose"))
"""Names of the folders of preferred and other images, which LoRA trainers read."""
MARKS = ("has_label", "are_different")
"""Pick-a-Pic's columns of which a False leaves a row out."""
_TRUE = ("true", "1", "1.0", "yes", "none", "nan", "")
_FALSE = ("false", "0", "0.0", "no")


@dataclass(frozen=True)
class PairSet:
    """N pairs of images, read when they are asked for."""

    prompts: tuple[str, ...]
    """N captions."""
    sources: Callable[[int], tuple[Any, Any]]
    """What `read_image` takes, for the preferred and for the other image of a pair."""
    places: Callable[[int], str]
    """Where a pair comes from, for messages."""
    digest: str
    """SHA-256 of the captions, of who is preferred, and of a table's paths; not of the images."""
    ties: int = 0
    """Rows left out since neither image is preferred."""
    labels: tuple[float, ...] = ()
    """N probabilities in [0, 1] that the first image of a pair is the better one; 1 without ties."""
    names: Callable[[int], tuple[str, str]] | None = None
    """By which the same image is known in other pairs; None where it is not."""

    def __len__(self) -> int:
        return len(self.prompts)

    def images(self, index: int, height: int, width: int) -> Tensor:
        """[2,3,height,width] in [0,1]: the preferred image, and the other. Raises DataError where one is unreadable."""
        where = self.places(index)
        return torch.stack([fitted(read_image(source, where), height, width) for source in self.sources(index)])


def concatenated(sets: Sequence[PairSet]) -> PairSet:
    """The pairs of all sets, at least one, in their order. Images of different sets are not known to be the same."""
    if len(sets) == 1:
        return sets[0]
    ends = list(itertools.accumulate(map(len, sets)))

    def found(index: int) -> tuple[PairSet, int]:
        number = bisect.bisect_right(ends, index)
        return sets[number], index - (ends[number] - len(sets[number]))

    def sources(index: int) -> tuple[Any, Any]:
        own, place = found(index)
        return own.sources(place)

    def places(index: int) -> str:
        own, place = found(index)
        return own.places(place)

    prompts = tuple(prompt for one in sets for prompt in one.prompts)
    labels = tuple(label for one in sets for label in one.labels or (1.0,) * len(one))
    return PairSet(
        prompts, sources, places, digest([one.digest for one in sets]), sum(one.ties for one in sets), labels
    )


def load_pairs(source: str, split: str = "train", *, ties: bool = False) -> PairSet:
    """The pairs of a folder with a pairs.jsonl (or .csv, ...), of a table (docs/guides/tables.md), of two folders of
    preferred and other images (`w` and `l`, or `win` and `lose`), or of a data set.

    Columns: prompt, caption or text; the two images, by one of IMAGES; and who is preferred, as `preferred` (0, 1, or
    `tie`), as one of NUMBERS (the larger one; equal is a tie), or as best_image_uid among image_0_uid and image_1_uid
    (else `tie`, or empty). Of the images FIRST_IS_PREFERRED the first is, whatever else the table has. Ties are left
    out, or with `ties` kept with the label 0.5. Then label_0 and label_1 that add up to 1 are probabilities, the shares
    of votes and of weighted results are too, and the pair's images are in the table's order. Paths are relative to the
    table. That a table's images are there is seen at once, the pixels of all are read when they are used. Raises
    DataError.
    """
    path = Path(source).expanduser()
    if os.path.isdir(path):
        if (table := table_named(path, "pairs")) is None and (folders := _two_folders(path)) is not None:
            return _from_folders(path, *folders)
        path = table or path
    if is_table(path) and not os.path.isdir(path):
        return _from_table(path, ties)
    return _from_dataset(open_dataset(source, split), source, ties)


def _two_folders(path: Path) -> tuple[Path, Path] | None:
    found = {item.name.lower(): item for item in path.iterdir() if item.is_dir()}
    return next(((found[one], found[two]) for one, two in FOLDERS if one in found and two in found), None)


def _from_folders(path: Path, better: Path, worse: Path) -> PairSet:
    """Images of the same name, but for its ending, in both folders; the caption is in a .txt file beside either."""
    sides = [_images_by_stem(folder) for folder in (better, worse)]
    if alone := sorted(sides[0].keys() ^ sides[1].keys()):
        there, lacking = (better, worse) if alone[0] in sides[0] else (worse, better)
        raise DataError(
            f"{there / alone[0]} has no image of that name in {lacking} ({len(alone)} of them have none): expected "
            "each preferred image and its other one under the same name"
        )
    if not sides[0]:
        raise DataError(f"{better} and {worse} have no images")
    stems = sorted(sides[0])
    files = [(sides[0][stem], sides[1][stem]) for stem in stems]
    for pair in files:
        for file in pair:
            check_header(file, str(file))
    prompts = tuple(_caption_beside(stem, better, worse) for stem in stems)
    found = [
        [prompt, *(os.path.relpath(file, path) for file in pair)] for prompt, pair in zip(prompts, files, strict=True)
    ]
    return PairSet(
        prompts, lambda i: files[i], lambda i: str(files[i][0]), digest(found), 0, (1.0,) * len(files),
        lambda i: (str(files[i][0]), str(files[i][1])),
    )  # fmt: skip


def _images_by_stem(folder: Path) -> dict[str, Path]:
    kinds, found = Image.registered_extensions(), {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or not file.is_file() or file.suffix.lower() not in kinds:
            continue
        if file.stem in found:
            raise DataError(f"{found[file.stem]} and {file} have the same name: a pair has one image in each folder")
        found[file.stem] = file
    return found


def _caption_beside(stem: str, better: Path, worse: Path) -> str:
    files = [file for folder in (better, worse) if (file := folder / f"{stem}.txt").is_file()]
    if not files:
        raise DataError(f"the pair {stem} has no caption: expected it in {better / stem}.txt, or in {worse / stem}.txt")
    texts = [caption(" ".join(read_text(file).split()), str(file)) for file in files]
    if len(set(texts)) > 1:
        raise DataError(f"{files[0]} and {files[1]} are different captions of one pair: leave one of them out")
    return texts[0]


def _from_table(path: Path, ties: bool) -> PairSet:
    rows = read_table(path)
    names = list(rows[0][1])
    text, images = text_column(names, str(path)), _images(names, str(path))
    verdict = _verdict(names, images, str(path))
    marks = [name for name in MARKS if name in names]
    kept: list[tuple[str, str, tuple[Path, Path], float]] = []
    for where, row in rows:
        missing = [name for name in (text, *images, *verdict) if name not in row]
        if missing:
            raise DataError(f"{where}: no {missing[0]}, which the first row has")
        label, first = _labelled({name: row.get(name) for name in (*verdict, *marks)}, where, ties)
        if label is None:
            continue
        files = [image_path(row[name], f"{where}, {name}", path.parent) for name in images]
        for file, name in zip(files, images, strict=True):
            check_header(file, f"{where}, {name}")
        kept.append((caption(row[text], where), where, (files[first], files[1 - first]), label))
    _some(kept, len(rows), str(path))
    prompts, labels = tuple(row[0] for row in kept), tuple(row[3] for row in kept)
    found = [[prompt, *(os.path.relpath(file, path.parent) for file in files)] for prompt, _, files, _ in kept]
    mark = digest([[*row, label] for row, label in zip(found, labels, strict=True)] if ties else found)
    names = lambda i: (str(kept[i][2][0]), str(kept[i][2][1]))  # noqa: E731
    return PairSet(prompts, lambda i: kept[i][2], lambda i: kept[i][1], mark, len(rows) - len(kept), labels, names)


def _from_dataset(dataset: Any, source: str, ties: bool) -> PairSet:
    names = dataset.column_names
    text, images = text_column(names, source), _images(names, source)
    verdict = _verdict(names, images, source)
    said = (text, *verdict, *(name for name in MARKS if name in names))
    prompts, kept, labels = [], [], []
    # Without the images, which may be hundreds of gigabytes.
    for number, row in enumerate(read_columns(dataset, said, source)):
        where = f"{source}, row {number}"
        label, first = _labelled(row, where, ties)
        if label is not None:
            prompts.append(caption(row[text], where))
            kept.append((number, first))
            labels.append(label)
    _some(kept, len(dataset), source)
    image_list, folder = as_stored(dataset, images), base_folder(source)

    def sources(index: int) -> tuple[Any, Any]:
        number, better = kept[index]
        where = f"{source}, row {number}"
        row = raw_row(image_list, number, where)
        one, two = (read_image(row[name], f"{where}, {name}", folder) for name in images)
        return (one, two) if better == 0 else (two, one)

    mark, left = digest([prompts, kept, labels] if ties else [prompts, kept]), len(dataset) - len(kept)
    found = PairSet(tuple(prompts), sources, lambda i: f"{source}, row {kept[i][0]}", mark, left, tuple(labels))
    found.images(0, 8, 8)  # a column that holds no images is found out now
    return found


def preferred(row: Mapping[str, Any], where: str) -> int | None:
    """Which image of a row is preferred, 0 or 1, None for a tie; the first where no column says it.

    Raises DataError for other answers.
    """
    if any(not _mark(row[name], name, where) for name in MARKS if name in row):
        return None
    if "preferred" in row:
        answer = _plain(row["preferred"]).lower()
        if answer in ("tie", "none", "null", "nan", "<na>", ""):
            return None
        if answer not in ("0", "1", "0.0", "1.0") or isinstance(row["preferred"], bool):
            raise DataError(f"{where}: preferred is {row['preferred']!r}, but must be 0, 1 or tie")
        return int(float(answer))
    for columns in NUMBERS:
        if columns[0] in row:
            one, two = _numbers(row, columns, where)
            return None if one == two else int(two > one)
    if "best_image_uid" not in row:
        return 0
    best, one, two = (_plain(row[name]) for name in ("best_image_uid", "image_0_uid", "image_1_uid"))
    if best.lower() in ("none", "tie", "nan", ""):
        return None
    if best not in (one, two) or one == two:
        raise DataError(f"{where}: best_image_uid is {best!r}, which is neither image's uid alone, nor tie")
    return int(best == two)


def _labelled(row: Mapping[str, Any], where: str, ties: bool) -> tuple[float | None, int]:
    """The probability that an image of a row is better than the other, and which, 0 or 1; None leaves the row out.

    Without `ties` that is 1 for the preferred image. With them the image is the first, unless it is a tie of a row that
    a mark leaves out.
    """
    better = preferred(row, where)
    if not ties:
        return (None if better is None else 1.0), better or 0
    if any(not _mark(row[name], name, where) for name in MARKS if name in row):
        return None, 0
    for columns in NUMBERS if "preferred" not in row else ():
        if columns[0] in row:
            one, two = _numbers(row, columns, where)
            if columns == NUMBERS[0] and abs(one + two - 1) < 1e-6:
                return one, 0
            if columns != NUMBERS[0] and one + two > 0:
                return one / (one + two), 0
            break
    return (0.5 if better is None else 1.0 - better), 0


def _numbers(row: Mapping[str, Any], columns: tuple[str, str], where: str) -> tuple[float, float]:
    """The numbers of a row. Raises DataError where they are none, or where numbers of people are negative."""
    one, two = (row[name] for name in columns)
    try:
        first, second = float(one), float(two)
    except (TypeError, ValueError, OverflowError):
        first = second = math.nan
    if not (math.isfinite(first) and math.isfinite(second)):
        raise DataError(f"{where}: {columns[0]} and {columns[1]} are {one!r} and {two!r}, not numbers")
    if columns != NUMBERS[0] and min(first, second) < 0:
        raise DataError(f"{where}: {columns[0]} and {columns[1]} are {one!r} and {two!r}, but must not be negative")
    return first, second


def _plain(value: Any) -> str:
    return tidy(str(value))


def _mark(value: Any, name: str, where: str) -> bool:
    """A mark of MARKS, true where it is missing."""
    answer = _plain(value).lower()
    if answer not in _FALSE + _TRUE:
        raise DataError(f"{where}: {name} is {value!r}, but must be true or false")
    return answer in _TRUE


def _images(names: Sequence[str], where: str) -> tuple[str, str]:
    for pair in IMAGES:
        if all(name in names for name in pair):
            return pair
    known = ", nor ".join(" and ".join(pair) for pair in IMAGES)
    raise DataError(f"{where}: no columns {known}; it has {', '.join(names)}")


def _verdict(names: Sequence[str], images: tuple[str, str], where: str) -> tuple[str, ...]:
    if images in FIRST_IS_PREFERRED:
        return ()
    for columns in VERDICTS:
        if all(name in names for name in columns):
            return columns
    raise DataError(
        f"{where}: nothing says which image is preferred: expected a column preferred (0, 1 or tie), label_0 and "
        "label_1, votes_image1 and votes_image2, or best_image_uid with image_0_uid and image_1_uid; it has "
        f"{', '.join(names)}"
    )


def _some(kept: Sequence[Any], rows: int, where: str) -> None:
    if not kept:
        raise DataError(f"{where} has {rows} rows and in none of them is an image preferred: ties teach nothing")
