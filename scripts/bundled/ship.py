"""Puts a finished build into the package: the pipeline, the judge, and what they weigh.

python scripts/bundled/ship.py --work build/bundled
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from build import export

ASSETS = Path(__file__).parents[2] / "src/tastemaker/assets"
LIMIT = 16_000_000
"""Bytes that all weights together may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bundled"))
    work = parser.parse_args().work
    export(work)
    for source, name in ((work / "pipeline", "bundled"), (work / "judge", "judge")):
        shutil.rmtree(ASSETS / name, ignore_errors=True)
        shutil.copytree(source, ASSETS / name)
    weights = {path: path.stat().st_size for path in ASSETS.rglob("*.safetensors")}
    for path, size in weights.items():
        print(f"{size / 1e6:6.2f} MB  {path.relative_to(ASSETS)}")
    total = sum(weights.values())
    print(f"{total / 1e6:6.2f} MB  in all")
    if total > LIMIT:
        raise SystemExit(f"the weights take {total} bytes, more than {LIMIT}")


if __name__ == "__main__":
    main()
