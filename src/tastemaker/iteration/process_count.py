"""`LAUNCHER -m tastemaker.iteration.process_count FILE` writes how many processes the launcher starts into the file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tastemaker.cli.folders import processes


def main(file: Path) -> None:
    """Writes the number, in the first of the processes. Raises ConfigError where the launcher's number is none."""
    if os.environ.get("RANK", "0") == "0":
        file.write_text(str(processes()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
