"""What a run leaves behind for people and programs: metrics.jsonl, config.yaml, env.json, and trackers' copies."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from tastemaker.runs import atomic

PACKAGES = ("tastemaker", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions of the packages that a run's numbers depend on."""
    return {package: _version(package) for package in PACKAGES}


@cache
def _version(package: str) -> str:
    """Read once: each checkpoint asks for it, and an imported package stays what it is."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def environment(command: str, accelerator: Accelerator) -> dict[str, Any]:
    """Versions and hardware that a run's numbers depend on."""
    import torch

    return {
        "command": command,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        **versions(),
    }


def append_metrics(path: Path, record: Mapping[str, Any]) -> None:
    """One JSON object a line, finite numbers only, on disk before the call returns. Raises OSError."""
    for name, value in record.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"metric {name} is {value}")
    atomic.append(path, (json.dumps(record) + "\n").encode())


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
    atomic.replace_atomic(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
