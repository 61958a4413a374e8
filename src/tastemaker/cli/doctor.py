"""`tastemaker doctor`: what is installed and what is missing, or whether a reward keeps its contract.

The first needs no package beside Python's own to run.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tastemaker.cli.folders import RUNS
from tastemaker.errors import ConfigError
from tastemaker.models.bundled import ASSETS, shipped

PYTHON = (3, 10)
REQUIRED = {
    "torch": "2.10",
    "diffusers": "0.36",
    "transformers": "5.3",
    "peft": "0.17",
    "accelerate": "1.10",
    "safetensors": "0.5",
    "numpy": "1.26",
    "pillow": "10",
    "jinja2": "3.1",
    "matplotlib": "3.9",
    "pyyaml": "6",
    "scikit-image": "0.24",
    "scipy": "1.11",
    "rich": "13.7",
    "tyro": "1.0",
    "annotated-types": "0.6",
    "inflect": "7.0",
    "httpx": "0.27",
    "anyio": "4.4",
    "msgspec": "0.19",
    "tenacity": "9",
    "fastapi": "0.121",
    "starlette": "0.49.1",
    "uvicorn": "0.35",
    "sqlalchemy": "2.0.40",
    "alembic": "1.16",
    "argon2-cffi": "25.1",
    "markdown-it-py": "3",
    "python-multipart": "0.0.20",
    "torchmetrics": "1.6",
}
"""Packages without which tastemaker does not work, with the oldest version that will do: pyproject.toml's (a test)."""
EXTRAS = {
    "tensorboard": "curves in TensorBoard (trackers=tensorboard)",
    "wandb": "curves in Weights & Biases (trackers=wandb)",
    "trackio": "curves in trackio (trackers=trackio)",
    "bitsandbytes": "AdamW states in 8 bits (optimizer.eight_bit)",
    "datasets": "prompts, pairs and images out of Hugging Face data sets",
    "rapidocr": "legible text as a reward (ocr), with onnxruntime and rapidfuzz: pip install 'tastemaker[ocr]'",
}
ROOM_GB = 5
"""Less free disk than this may not hold the checkpoints of a larger model."""

_HELP = """usage: tastemaker doctor [--reward NAME ...]

Shows what is installed and what is missing, a line each, and how to fix it. Uses no network.
Exit code 0, or 1 where something required is missing.

With --reward, runs a reward through its contract instead: `tastemaker doctor --reward --help`."""


@dataclass(frozen=True)
class Line:
    """One finding: `ok`, `missing` (required), or `absent` and `low` (which still work)."""

    state: str
    what: str
    fix: str = ""


def run(argv: list[str]) -> int:
    """Runs the command."""
    if any(word.partition("=")[0] == "--reward" for word in argv):
        from tastemaker.cli.doctor_reward import run as examine

        return examine(argv)
    if argv:
        if argv[0] not in ("-h", "--help"):
            raise ConfigError(f"unexpected {argv[0]!r}: doctor takes no arguments, or --reward NAME")
        print(_HELP)
        return 0
    missing = 0
    for line in findings():
        missing += line.state == "missing"
        print(f"{line.state:8} {line.what}" + (f"\n{'':8} -> {line.fix}" if line.fix else ""), flush=True)
    if missing:
        print(f"\n{missing} required {'thing is' if missing == 1 else 'things are'} missing.")
    return 1 if missing else 0


def findings() -> Iterator[Line]:
    """All that is looked at, in the order in which it is shown."""
    yield _python()
    yield from (package(name, oldest) for name, oldest in REQUIRED.items())
    yield device()
    yield from (extra(name, purpose) for name, purpose in EXTRAS.items())
    yield from (assets(ASSETS / name) for name in shipped())
    yield from folder(RUNS)


def _python() -> Line:
    wanted = ".".join(map(str, PYTHON))
    what = f"python {platform.python_version()} at {sys.executable}"
    if sys.version_info >= PYTHON:
        return Line("ok", what)
    return Line("missing", f"{what}, but {wanted} or newer is needed", f"install Python {wanted}")


def package(name: str, oldest: str) -> Line:
    """A required package: installed and new enough, or not."""
    fix = f"pip install '{name}>={oldest}'"
    found = _version(name)
    if found is None:
        return Line("missing", f"{name} (needs {oldest} or newer)", fix)
    if _numbers(found) < _numbers(oldest):
        return Line("missing", f"{name} {found} is too old: needs {oldest} or newer", fix)
    return Line("ok", f"{name} {found}")


def extra(name: str, purpose: str) -> Line:
    """A package that some setting asks for."""
    found = _version(name)
    if found is None:
        return Line("absent", f"{name}, optional: {purpose}", f"pip install {name}")
    return Line("ok", f"{name} {found}")


def device() -> Line:
    """What torch would compute on."""
    try:
        import torch
    except Exception as error:  # a broken install raises ImportError, OSError and others
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Line("missing", f"device: torch cannot be imported: {reason}", "install torch again")
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        name = torch.cuda.get_device_name(0)
        return Line("ok", f"device: cuda, {torch.cuda.device_count()} x {name}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        return Line("ok", "device: mps")
    return Line("ok", f"device: cpu, {torch.get_num_threads()} threads (fine for the bundled model)")


def assets(path: Path) -> Line:
    """A bundled model: a diffusers pipeline with weights."""
    if not (path / "model_index.json").is_file() or not any(path.rglob("*.safetensors")):
        fix = f"install tastemaker again, or build it with `make {path.name}`"
        return Line("missing", f"model {path.name} at {path}", fix)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Line("ok", f"model {path.name}, {size / 2**20:.0f} MiB, at {path}")


def folder(runs: Path) -> Iterator[Line]:
    """Whether runs can be written, and how much room they have."""
    folder = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            yield Line("ok", f"{runs}{os.sep} can be written (in {folder})")
    except OSError as error:
        fix = "go to a folder of your own, or give --out DIR"
        yield Line("missing", f"{folder} cannot be written: {error.strerror or error}", fix)
    free = shutil.disk_usage(folder).free / 2**30
    if free >= ROOM_GB:
        yield Line("ok", f"disk: {free:.0f} GiB free")
    else:
        yield Line("low", f"disk: only {free:.1f} GiB free", "make room: checkpoints of a large model need more")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.13.0+cpu is (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()
