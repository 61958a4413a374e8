"""The machine that benchmarks/gpu.py measures: card, driver, versions, and what CUDA itself needs. Prints JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("tastemaker", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "triton")


def machine() -> dict[str, Any]:
    """What figures depend on."""
    found: dict[str, Any] = {
        "device": "cpu", "torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "packages": {name: installed(name) for name in PACKAGES},
    }  # fmt: skip
    if torch.cuda.is_available():
        found |= about_card()
    return found


def about_card() -> dict[str, Any]:
    """Of the current CUDA device; `outside_torch_gib` is what its driver and libraries hold beside PyTorch's tensors,
    and all other programs on the card."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    one = torch.ones(1024, 1024, device="cuda", dtype=torch.bfloat16)
    (one @ one).sum().item()
    free, whole = torch.cuda.mem_get_info()
    return {
        "device": properties.name, "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": properties.total_memory / 2**30,
        "outside_torch_gib": (whole - free - torch.cuda.memory_reserved()) / 2**30,
        "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": driver(),
    }  # fmt: skip


def driver() -> str | None:
    """The driver's version by nvidia-smi; None where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0].strip() if lines else None


def installed(name: str) -> str | None:
    """A package's version; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(machine()))
