"""Tables and lists as other programs write them: text, CSV, TSV, JSON and JSON lines, with the row of what is wrong.

The one reader of them all (docs/guides/tables.md). Hugging Face data sets and parquet files: data/hf_datasets.py.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tastemaker.errors import DataError

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
"""Files with rows, by the end of their name in any case."""
TEXT = ("prompt", "caption", "text")
"""Columns that may hold what an image shows, the first that is there."""
_NAMES = frozenset(
    (*TEXT, "weight", "file_name", "image_0", "image_1", "jpg_0", "jpg_1", "preferred", "label_0", "label_1")
)
"""Names by which the separator of a CSV file is recognised."""
_SEPARATORS = (",", ";", "\t", "|")
_MISSING = ("nan", "NaN", "None", "null", "NULL", "<NA>")
"""What programs write into a CSV file for a value that is missing."""
_BOMS = (
    (b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"),
)  # fmt: skip

Row = tuple[str, Any]
"""Where a record comes from (`file:line`), and the record."""


def is_table(path: Path) -> bool:
    """Whether a file is read here, by its name."""
    return path.suffix.lower() in TABLES


def read_text(path: Path) -> str:
    """A file's text: UTF-8, or UTF-16 or 32 with a byte order mark, as Excel writes them.

    Raises DataError for a file that is missing or in another encoding, which is never guessed.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        near = near_match(path)
        hint = f"; did you mean {shown(near)}?" if near else ""
        raise DataError(f"there is no file {shown(path)}{hint}") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = 1 + len(re.findall(rb"\r\n|\r|\n", data[: error.start]))
        expected, byte = encoding.removesuffix("-sig").upper(), data[error.start]
        raise DataError(
            f"{path} is not {expected}: line {line} has the byte 0x{byte:02x}, which cannot be read; save the file as "
            "UTF-8 (Excel: CSV UTF-8)"
        ) from error
    if "\0" in text:
        line = len(lines(text[: text.index("\0")] + "."))
        raise DataError(
            f"{path}, line {line} has a NUL character: it is no text file, or UTF-16 without a byte order mark; save "
            "it as UTF-8"
        )
    return text


def lines(text: str) -> list[str]:
    """Lines that end with \\n, \\r\\n or \\r, and not with the other characters at which `str.splitlines` cuts."""
    return re.split(r"\r\n|\r|\n", text)


def tidy(text: str) -> str:
    """The text without blanks and byte order marks around it."""
    return text.strip().strip("\ufeff").strip()


def checked_text(value: Any, where: str, what: str) -> str:
    """The value, if it is text that can be encoded. Raises DataError for others and for half surrogates and NULs.

    JSON and Python have strings with half of a surrogate pair (`"\\ud83d"`), which no tokenizer or file can take.
    """
    if not isinstance(value, str):
        found = "none" if value is None else f"{type(value).__name__} {str(value)[:80]!r}"
        raise DataError(f"{where}: expected a {what}, which is text, but found {found}")
    bad = re.search("[\ud800-\udfff\0]", value)
    if bad:
        kind = "a NUL character" if bad[0] == "\0" else f"half of a surrogate pair (\\u{ord(bad[0]):04x})"
        raise DataError(f"{where}: the {what} has {kind} at character {bad.start() + 1}, which is no text: correct it")
    return value


def near_match(path: Path) -> Path | None:
    """A path that is there and differs from a missing one only in upper and lower case, or in how its accents are
    coded (macOS and zip archives decompose them); None without one."""
    found = Path(path.anchor)
    for part in path.parts[1 if path.anchor else 0 :]:
        try:
            names = {item.name for item in found.iterdir()}
        except OSError:
            return None
        if part not in names and part != "..":
            part = next((name for name in sorted(names) if _folded(name) == _folded(part)), "")
            if not part:
                return None
        found /= part
    return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def shown(value: Any) -> str:
    """A value for a message: at most 200 characters, with half surrogates escaped."""
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 200 else text[:197] + "..."


def read_records(path: Path) -> list[Row]:
    """The rows of a table with where they are: mappings by column, or other values that a JSON file holds.

    Column names are stripped and in lower case. JSON may be an object a line, one array, several objects one after the
    other, or one object of columns. The separator of a CSV file is taken from its first line. Blank lines are skipped.
    Raises DataError for a file that is missing, empty or not of its format.
    """
    text = read_text(path)
    suffix = path.suffix.lower()
    rows = list(_csv(path, text, suffix) if suffix in (".csv", ".tsv") else _json(path, text))
    if not rows:
        raise DataError(f"{path} is empty: expected a row a line")
    return rows


def read_table(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """`read_records`, all of them mappings. Raises DataError for other records too."""
    rows = read_records(path)
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected a JSON object, but found {json.dumps(row)[:80]}")
    return rows


def text_column(names: Sequence[str], where: str) -> str:
    """The column of the captions. Raises DataError where there is none."""
    for name in TEXT:
        if name in names:
            return name
    raise DataError(f"{where}: no column {' or '.join(TEXT)}; the columns are {', '.join(map(str, names))[:300]}")


def renamed(names: Sequence[str]) -> dict[str, str]:
    """Columns by their stripped names in lower case; those keep theirs whose new name another column has."""
    new = [tidy(name).lower() for name in names]
    return {
        name: low if low == name or (new.count(low) == 1 and low not in names) else name
        for name, low in zip(names, new, strict=True)
    }


# ---------------------------------------------------------------- CSV


def _csv(path: Path, text: str, suffix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    said, skipped = re.match(r'"?sep=([,;\t|:])"?(?:\r\n|\r|\n)', text, re.IGNORECASE), 0
    if said:  # Excel's own first line
        text, skipped = text[said.end() :], 1
    separator = said[1] if said else "\t" if suffix == ".tsv" else _separator(text)
    limit = csv.field_size_limit(max(len(text), 131072))  # cells of any length, which are in memory already
    try:
        yield from _csv_rows(path, text, separator, skipped)
    finally:
        csv.field_size_limit(limit)


def _csv_rows(path: Path, text: str, separator: str, skipped: int) -> Iterator[tuple[str, dict[str, Any]]]:
    # csv wants lines as they are: newline="" ends them at \n, \r\n and \r, and keeps those within quotation marks.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    names: list[str] = []
    before = skipped
    try:
        for cells in reader:
            where, before = f"{path}:{before + 1}", reader.line_num + skipped
            cells = [tidy(cell) for cell in cells]
            if not any(cells):
                continue
            if not names:
                names = _header(cells, where)
                continue
            if len(cells) < len(names) or any(cells[len(names) :]):
                raise DataError(f"{where}: expected {len(names)} columns, but found {len(cells)}")
            row: dict[str, Any] = {name: cell for name, cell in zip(names, cells, strict=False) if name}
            for name in [name for name in TEXT if name in row][:1]:
                if row[name] in _MISSING:
                    raise DataError(f"{where}: the {name} is {row[name]!r}, which stands for a value that is missing")
            yield where, row
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num + skipped}: not CSV: {error}") from error


def _separator(text: str) -> str:
    """The character between the columns: the one by which the first line has most names that are known, or most."""

    def rank(separator: str) -> tuple[int, int]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        try:
            cells = next((cells for cells in reader if any(cells)), [])
        except csv.Error:
            return 0, 0
        return sum(tidy(cell).lower() in _NAMES for cell in cells), len(cells)

    return max(_SEPARATORS, key=rank)  # the first of equals


def _header(cells: Sequence[str], where: str) -> list[str]:
    while cells and not cells[-1]:  # separators at the end of each line
        cells = cells[:-1]
    twice = next((name for name in cells if name and cells.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: two columns have the name {twice!r}: rename or remove one")
    new = renamed([name for name in cells if name])
    return [new[name] if name else "" for name in cells]


# ---------------------------------------------------------------- JSON


class _Twice(ValueError):
    """An object with two values of one name, of which Python would keep the last."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _json(path: Path, text: str) -> Iterator[Row]:
    text = text.lstrip("\ufeff")
    if text.lstrip()[:1] == "[":
        whole = _whole(path, text)
        for number, value in enumerate(whole):
            yield f"{path}, entry {number + 1}", _named(value)
        return
    try:
        found = list(_values(path, text))
    except DataError:
        found = _one_after_the_other(path, text)
        if found is None:
            raise
    if len(found) == 1 and _are_columns(found[0][1]):
        columns = found[0][1]
        for number, values in enumerate(zip(*columns.values(), strict=True)):
            yield f"{path}, entry {number + 1}", _named(dict(zip(columns, values, strict=True)))
        return
    yield from ((where, _named(value)) for where, value in found)


def _whole(path: Path, text: str) -> list[Any]:
    """A file that is one array."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{_line(text, error.pos)}: not JSON ({error.msg}): expected an array of rows"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON that can be read ({_reason(error)})") from error


def _values(path: Path, text: str) -> Iterator[Row]:
    """A value a line."""
    for number, line in enumerate(lines(text), 1):
        if not (line := tidy(line)):
            continue
        try:
            yield f"{path}:{number}", _DECODER.decode(line)
        except _Twice as error:
            raise DataError(f"{path}:{number}: {error}: remove one") from error
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: expected a JSON object a line, but the line is not JSON ({_reason(error)})"
            ) from error


def _one_after_the_other(path: Path, text: str) -> list[Row] | None:
    """Objects that take several lines each, as programs write them to be read by people; None if it is not that."""
    found, at = [], 0
    while match := re.compile(r"\s*(?=\{)").match(text, at):
        try:
            value, at = _DECODER.raw_decode(text, match.end())
        except _Twice as error:
            raise DataError(f"{path}:{_line(text, match.end())}: {error}: remove one") from error
        except (ValueError, RecursionError):
            return None
        found.append((f"{path}:{_line(text, match.end())}", value))
    return found if found and not text[at:].strip() else None


def _are_columns(value: Any) -> bool:
    """Whether it is an object of columns, each a list of as many values."""
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(column, list) for column in value.values())
        and len({len(column) for column in value.values()}) == 1
    )


def _named(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    new = renamed(list(value))
    return {new[name]: entry for name, entry in value.items()}


def _line(text: str, position: int) -> int:
    return len(lines(text[:position]))


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)[:200] or type(error).__name__
