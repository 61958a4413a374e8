"""Grids of images with what their rows and columns are written beside them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from textwrap import wrap

from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from tastemaker.evaluation.images import contact_sheet
from tastemaker.printing import readable

_INK, _SIZE, _GAP = "#1c2024", 13, 4


def labelled_grid(
    images: Sequence[Image.Image], rows: Sequence[str], columns: Sequence[str] = (), cell: int | None = None
) -> Image.Image:
    """Images row by row, with the rows' names to their left and the columns', where given, above."""
    across = len(images) // len(rows)
    sheet = contact_sheet(images, across, cell, _GAP)
    side = (sheet.width + _GAP) / across
    lines = [wrap(readable(name), 18) or [""] for name in rows]
    left = max(_width(line) for parts in lines for line in parts) + 4 * _GAP
    top = _SIZE + 3 * _GAP if columns else 0
    whole = Image.new("RGB", (left + sheet.width, top + sheet.height), "white")
    whole.paste(sheet, (left, top))
    pen, height = ImageDraw.Draw(whole), (sheet.height + _GAP) / len(rows)
    for number, name in enumerate(columns):
        pen.text((left + (number + 0.5) * side - _GAP / 2, top - _GAP), readable(name), _INK, _font(), anchor="ms")
    for number, parts in enumerate(lines):
        middle = top + (number + 0.5) * height - _GAP / 2
        pen.multiline_text((left - 2 * _GAP, middle), "\n".join(parts), _INK, _font(), anchor="rm", align="right")
    return whole


def _width(text: str) -> int:
    return int(_font().getlength(text)) + 1


@cache
def _font() -> ImageFont.FreeTypeFont:
    """matplotlib's, which is there wherever this package is; Pillow's own has no letters beyond ASCII."""
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), _SIZE)
