"""How many processes a launcher has started together.

`LAUNCHER -m tastemaker.process_count FILE` writes the number into the file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tastemaker.errors import ConfigError


def process_count() -> int:
    """How many processes a launcher has started together. Raises ConfigError where $WORLD_SIZE is no number."""
    given = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not given.isdecimal():
        raise ConfigError(f"$WORLD_SIZE is {given!r}, expected the number of processes, as a launcher sets it")
    return int(given)


def main(file: Path) -> None:
    """Writes the number, in the first of the processes. Raises ConfigError as `process_count`."""
    if os.environ.get("RANK", "0") == "0":
        file.write_text(str(process_count()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
