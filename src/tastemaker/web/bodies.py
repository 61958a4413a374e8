"""Bodies of requests, within limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

BODY_SECONDS = 60.0
"""Seconds in which a request's body must arrive."""


class BodyError(Exception):
    """A body that is refused, with the HTTP status and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def content_length(header: str | None) -> int | None:
    """The length that a `Content-Length` header gives; None where it gives none."""
    given = header or ""
    return int(given) if given.isascii() and given.isdigit() and len(given) < 20 else None


async def read_body(parts: AsyncIterator[bytes], most: int, too_long: BodyError) -> bytes:
    """The whole body of at most `most` bytes. Raises BodyError: `too_long`, or for one that does not arrive in time."""
    try:
        return await asyncio.wait_for(_join(parts, most, too_long), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise BodyError(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from None


async def _join(parts: AsyncIterator[bytes], most: int, too_long: BodyError) -> bytes:
    had, size = [], 0
    async for part in parts:
        size += len(part)
        if size > most:
            raise too_long
        had.append(part)
    return b"".join(had)
