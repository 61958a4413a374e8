"""How PIL writes a JPEG, in tensors: planes, blocks, coefficients, and what the entropy code charges for them.

The order of things is that of baseline JPEG (ITU-T T.81) with chroma at half the resolution both ways, which is what
PIL does unless told otherwise. The tables are read from a file that PIL itself has written.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tastemaker.rewards.jpeg import QUALITY

SIDE, COEFFICIENTS = 8, 64
AC_CATEGORIES, DC_CATEGORIES = 10, 11
"""The largest number of magnitude bits of a coefficient, and of a difference of DC coefficients (8-bit images)."""
_TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
"""JFIF 1.02. Chroma is centred at 0 here, which JPEG's level shift of 128 does."""


@dataclass(frozen=True)
class Code:
    """Quantisation and code lengths; first index 0 for luma and 1 for chroma, coefficients in zigzag order."""

    header: int
    """Bytes of a file that do not depend on the image."""
    quantum: Tensor
    """[2,64] steps of the coefficients."""
    dc: Tensor
    """[2,12] bits of a DC difference by category, its magnitude bits included."""
    ac: Tensor
    """[2,63,11] bits of a coefficient by the zeros before it and its category, their codes and magnitude bits included;
    0 for category 0."""
    end: Tensor
    """[2] bits of the end of a block."""


@cache
def code(quality: int = QUALITY) -> Code:
    """What PIL writes at a quality, from the tables of a file that it has just written."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, format="JPEG", quality=quality)
    data, offset = buffer.getvalue(), 2
    quanta, lengths = {}, {}
    while data[offset + 1] != 0xDA:  # start of scan, the last segment before the image's data
        marker, size = data[offset + 1], int.from_bytes(data[offset + 2 : offset + 4], "big")
        segment = data[offset + 4 : offset + 2 + size]
        if marker == 0xDB:
            quanta.update(_quanta(segment))
        elif marker == 0xC4:
            lengths.update(_lengths(segment))
        offset += 2 + size
    offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
    dc = [[lengths[0, k][c] + c for c in range(DC_CATEGORIES + 1)] for k in (0, 1)]
    ac = [[[_ac_bits(lengths[1, k], r, c) for c in range(AC_CATEGORIES + 1)] for r in range(63)] for k in (0, 1)]
    return Code(
        header=offset + 2,  # the end-of-image marker
        quantum=torch.tensor([quanta[0], quanta[1]], dtype=torch.float64),
        dc=torch.tensor(dc, dtype=torch.float64),
        ac=torch.tensor(ac, dtype=torch.float64),
        end=torch.tensor([lengths[1, k][0] for k in (0, 1)], dtype=torch.float64),
    )


def _quanta(segment: bytes) -> dict[int, list[int]]:
    """Tables of a DQT segment by number; 8 bits a step at the qualities of interest (T.81, B.2.4.1)."""
    return {segment[i]: list(segment[i + 1 : i + 65]) for i in range(0, len(segment), 65)}


def _lengths(segment: bytes) -> dict[tuple[int, int], dict[int, int]]:
    """Code lengths in bits by symbol, of the tables in a DHT segment by (class, number) (T.81, B.2.4.2)."""
    tables, offset = {}, 0
    while offset < len(segment):
        key, counts = (segment[offset] >> 4, segment[offset] & 15), segment[offset + 1 : offset + 17]
        lengths = [bits for bits, count in enumerate(counts, 1) for _ in range(count)]
        offset += 17
        tables[key] = dict(zip(segment[offset : offset + len(lengths)], lengths, strict=True))
        offset += len(lengths)
    return tables


def _ac_bits(lengths: dict[int, int], run: int, category: int) -> int:
    """Bits of `run` zeros and a coefficient: every 16 zeros have a symbol of their own (T.81, F.1.2.2)."""
    if category == 0:
        return 0
    return run // 16 * lengths[0xF0] + lengths[run % 16 << 4 | category] + category


@cache
def basis() -> Tensor:
    """[64,64] orthonormal DCT-II of a block: coefficients in zigzag order from pixels in raster order (T.81, A.3.3)."""
    n = torch.arange(SIDE, dtype=torch.float64)
    rows = torch.cos(math.pi * (2 * n[None] + 1) * n[:, None] / (2 * SIDE)) / 2
    rows[0] /= math.sqrt(2)
    return torch.einsum("ux,vy->uvxy", rows, rows).reshape(COEFFICIENTS, -1)[_zigzag()]


def _zigzag() -> list[int]:
    """Places in raster order of the 64 coefficients: along the antidiagonals, up and down in turn."""
    cells = [(v, u) for v in range(SIDE) for u in range(SIDE)]
    order = sorted(cells, key=lambda c: (sum(c), c[0] if sum(c) % 2 else c[1]))
    return [SIDE * v + u for v, u in order]


def planes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Luma [B,h,w] and chroma [B,2,h/2,w/2] of images [B,3,H,W] in [0,1], centred, in units of 1/255.

    h and w are H and W made up to multiples of 16 by repeating the last pixels; chroma is the mean of four.
    """
    height, width = x.shape[-2:]
    x = F.pad(x * 255, (0, -width % 16, 0, -height % 16), mode="replicate")
    ycc = torch.einsum("cd,bdhw->bchw", x.new_tensor(_TO_YCC), x)
    return ycc[:, 0] - 128, F.avg_pool2d(ycc[:, 1:], 2)


def coefficients(plane: Tensor) -> Tensor:
    """[B,h/8,w/8,64] coefficients of a plane [B,h,w], whose sides are multiples of 8."""
    count, height, width = plane.shape
    blocks = plane.reshape(count, height // SIDE, SIDE, width // SIDE, SIDE).transpose(2, 3)
    return blocks.flatten(3) @ basis().to(plane).T


def luma_order(height: int, width: int) -> Tensor:
    """Places of the luma blocks of an image in the order of the file: 2x2 at a time (T.81, A.2.3).

    Places count in the made-up grid of ceil(H/16)*2 by ceil(W/16)*2 blocks; blocks that hold no pixel are left out.
    They cost a fixed number of bits (DC difference 0, end of block), and the next block's difference is from the last
    real one all the same (libjpeg's jccoefct.c).
    """
    rows, columns = -(-height // 16), -(-width // 16)
    indices = torch.arange(4 * rows * columns).reshape(rows, 2, columns, 2)
    y, x = indices // (2 * columns), indices % (2 * columns)
    real = (y < -(-height // SIDE)) & (x < -(-width // SIDE))
    return indices.transpose(1, 2)[real.transpose(1, 2)]
