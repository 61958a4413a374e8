"""The manifest of a checkpoint: its files with their SHA-256, and the fingerprint of the run that wrote them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tastemaker.runs import atomic

NAME = "manifest.json"
FORMAT = 2
"""Format 1 had the key `facts` in place of `fingerprint`."""


class CorruptCheckpoint(Exception):
    """A checkpoint that is not what was written; the text says how it differs."""


def write_manifest(folder: Path, files: Mapping[str, bytes], fingerprint: Mapping[str, Any]) -> None:
    """Writes `files` into the folder, and last of all their manifest. Raises OSError."""
    for name, data in files.items():
        atomic.write(folder / name, data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    atomic.write(folder / NAME, _bytes({"format": FORMAT, "files": hashes, "fingerprint": dict(fingerprint)}))
    atomic.sync(folder)


def verify_manifest(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files of a folder, each with the hash that its manifest gives, and the manifest's fingerprint.

    What is returned is what was hashed: nothing is read twice. Raises CorruptCheckpoint where any bit differs.
    """
    content = _manifest(folder)
    files = {}
    for name, expected in content["files"].items():
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise CorruptCheckpoint(f"{name} cannot be read: {error.strerror}") from error
        if hashlib.sha256(files[name]).hexdigest() != expected:
            raise CorruptCheckpoint(f"{name} is not what was written: its SHA-256 is another than the manifest's")
    return files, content["fingerprint"]


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        data = (folder / NAME).read_bytes()
    except OSError as error:
        raise CorruptCheckpoint(f"{NAME} cannot be read: {error.strerror}") from error
    try:
        content = json.loads(data)
        if content["format"] != FORMAT:
            raise CorruptCheckpoint(f"{NAME} is of format {content['format']}, and this version reads format {FORMAT}")
        whole = data == _bytes({key: content[key] for key in ("format", "files", "fingerprint")})
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise CorruptCheckpoint(f"{NAME} is not what was written")
    return content


def _bytes(content: dict[str, Any]) -> bytes:
    """One way to write it, ending with a hash of itself, so that a change of any bit shows."""
    body = json.dumps(content, sort_keys=True, indent=1)
    own = hashlib.sha256(body.encode()).hexdigest()
    return f'{body[:-2]},\n "sha256": "{own}"\n}}\n'.encode()
