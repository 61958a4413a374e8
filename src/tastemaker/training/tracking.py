"""What a run leaves behind for people and programs: metrics.jsonl, config.yaml, env.json, and trackers' copies."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import Accelerator

PACKAGES = ("tastemaker", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "pillow")


def environment(command: str, accelerator: Accelerator) -> dict[str, Any]:
    """Versions and hardware that a run's numbers depend on."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return {
        "command": command,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        **versions,
    }


def append_metrics(path: Path, record: Mapping[str, Any]) -> None:
    """One JSON object a line, finite numbers only, on disk before the call returns."""
    for name, value in record.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"metric {name} is {value}")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole records; a last line that a killed run left torn is no record."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def truncate_metrics(path: Path, round: int) -> None:
    """Drops the records of rounds after `round`, which a resumed run will write again."""
    kept = [record for record in read_metrics(path) if record.get("round", record.get("evaluation", 0)) <= round]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    os.replace(temporary, path)
