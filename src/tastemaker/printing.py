"""Text for a person, on streams that may lack characters, or that may be gone."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

ESCAPE = "tastemaker.escape"
"""Name of the error handler by which undecodable bytes are written as they were, and characters that the encoding lacks
as backslash escapes."""


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    # Python reads a byte of a file's name that is no text as one of these surrogates (PEP 383).
    parts = [
        bytes([ord(one) - 0xDC00]) if "\udc80" <= one <= "\udcff" else one.encode("ascii", "backslashreplace")
        for one in missing
    ]
    return b"".join(parts), error.end


codecs.register_error(ESCAPE, _escape)


def readable(text: str) -> str:
    """Text that every encoding of Unicode has: names of files as UTF-8, with escapes for bytes that are not."""
    return text.encode("utf-8", ESCAPE).decode("utf-8", "backslashreplace")


class Output:
    """A text stream for reports on work that must not end because they cannot be shown.

    Characters that the stream's encoding lacks are escaped. After the stream has failed (the reader has left, it is
    closed, its disk is full) nothing is written to it any more.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    @property
    def encoding(self) -> str:
        """The stream's encoding; UTF-8 for streams without one, such as `io.StringIO`."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Writes what can be written. Raises nothing; returns len(text)."""
        try:
            self._write(text)
        except Exception:  # a closed stream raises ValueError, and one of another program (a notebook's) anything
            self.stream = None
        return len(text)

    def flush(self) -> None:
        try:
            flush: Any = getattr(self.stream, "flush", None)
            if flush is not None:
                flush()
        except Exception:
            self.stream = None

    def isatty(self) -> bool:
        """Whether a person reads along on a terminal; False where the stream does not say."""
        try:
            return bool(self.stream is not None and self.stream.isatty())
        except Exception:
            return False

    def _write(self, text: str) -> None:
        if self.stream is None:
            return
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            self.stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))


def print_lines(*lines: object) -> None:
    """Prints lines about work that is done, and goes on if they cannot be printed."""
    output = Output(sys.stdout)
    for line in lines:
        output.write(f"{line}\n")


@contextmanager
def escaped_output() -> Iterator[None]:
    """Inside it, standard output and error write what their encoding lacks as escapes, whatever the locale is."""
    streams = [one for one in (sys.stdout, sys.stderr) if isinstance(one, io.TextIOWrapper)]
    errors = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors=ESCAPE)
    try:
        yield
    finally:
        for stream, before in zip(streams, errors, strict=True):
            if not stream.closed:
                stream.reconfigure(errors=before)
