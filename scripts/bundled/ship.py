"""Puts finished builds into the package: the pipelines and the judge, and what they weigh.

python scripts/bundled/ship.py --work build/bundled [--only bundled-flow]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

ASSETS = Path(__file__).parents[2] / "src/tastemaker/assets"
SOURCES = {"bundled": "pipeline", "judge": "judge", "bundled-flow": "flow-pipeline", "bundled-pixel": "pixel-pipeline"}
"""Folders in the package, and in the work folder."""
LIMITS = {"bundled": 16_000_000, "judge": 1_000_000, "bundled-flow": 8_000_000, "bundled-pixel": 8_000_000}
"""Bytes that a folder may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bundled"))
    parser.add_argument("--only", nargs="+", choices=SOURCES, default=["bundled", "judge"])
    arguments = parser.parse_args()
    work = arguments.work
    if "bundled" in arguments.only:
        from build import export

        export(work)
    for name in arguments.only:
        source = work / SOURCES[name]
        size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
        if size > LIMITS[name]:
            raise SystemExit(f"{source} takes {size} bytes, more than {LIMITS[name]}")
        shutil.rmtree(ASSETS / name, ignore_errors=True)
        shutil.copytree(source, ASSETS / name)
        print(f"{size / 1e6:6.2f} MB  {name}")


if __name__ == "__main__":
    main()
