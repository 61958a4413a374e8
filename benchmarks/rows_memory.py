"""Memory and speed of training Stable Diffusion 1.x, full size with random weights, by the rows of one pass.

    python benchmarks/rows_memory.py [--rows 1 2 4 8] [--steps 3] [--threads 2] [--out docs/results/rows-memory.json]

LoRA as in the preset ddpo-compressibility-sd14-lora: 512 px and all variants on a GPU, 64 px and those that a CPU has
elsewhere. Each line is a process of its own: one round to warm up, then one that is measured. Sampling takes as many
images at once as training takes rows. Memory is the highest of both rounds, weights included but not what loading
them took for a moment: of tensors on a GPU, of the whole process (Linux' VmHWM) on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "build/sd-random"
PRESET = "ddpo-compressibility-sd14-lora"
BASE: dict[str, Any] = {"precision": "fp32", "checkpointing": False, "compile": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "checkpointing": {"checkpointing": True},
    "compile": {"compile": True},
    "bf16 + checkpointing": {"precision": "bf16", "checkpointing": True},
    "bf16 + compile": {"precision": "bf16", "compile": True},
}
"""Measured at the most rows, against BASE. On a CPU without compile, which takes longer there than all the rest."""


def make_model() -> None:
    """Writes the random model, the one of the slow tests, unless it is there."""
    if (MODEL / "model_index.json").is_file():
        return
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/slow")]
    from test_stable_diffusion import stable_diffusion  # pyright: ignore[reportMissingImports]

    stable_diffusion(MODEL)


def measure(line: dict[str, Any]) -> dict[str, Any]:
    """Peak memory and rows/s of one line, in this process."""
    import torch

    from tastemaker.benchmarking.bench import plain_round
    from tastemaker.benchmarking.floor import calls_of_round
    from tastemaker.config.presets import PRESETS
    from tastemaker.runs.checkpoint import State
    from tastemaker.training.setup import start

    base, rows = PRESETS[PRESET].config, line["rows"]
    config = replace(
        base,
        model=str(MODEL),
        precision=line["precision"],
        speed=replace(base.speed, compile=line["compile"]),
        sampling=replace(
            base.sampling,
            height=line["pixels"],
            width=line["pixels"],
            steps=line["steps"],
            samples=line["images"],
            batch=rows,
        ),
        optimizer=replace(base.optimizer, updates=1, rows=rows),
        tuning=replace(base.tuning, gradient_checkpointing=line["checkpointing"]),
    )
    with tempfile.TemporaryDirectory() as folder:
        session = start(config, Path(folder), State())
        device = session.accelerator.device
        loaded = forget_peak(device)
        plain_round(session)
        made = plain_round(session)
    # Guidance doubles the inputs of a pass.
    trained = sum(size * count for size, count in calls_of_round(session).network.backward.items()) // 2
    return {
        "loaded_gib": round(loaded, 3),
        "peak_gib": round(peak(device), 3),
        "rows_per_second": round(trained / made.phases["train"], 4),
        "images_per_second": round(config.sampling.samples / made.phases["sample"], 4),
        "trained_rows": trained,
        "round_seconds": round(made.seconds, 2),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def forget_peak(device: Any) -> float:
    """Starts the peak again from what is taken now, in GiB, so that loading does not hide the rounds."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return peak(device)


def peak(device: Any) -> float:
    """GiB at most since `forget_peak`."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status").read_text()
    kilobytes = next(row.split()[1] for row in status.splitlines() if row.startswith("VmHWM:"))
    return int(kilobytes) / 2**20


def lines(rows: list[int], steps: int, cuda: bool) -> list[dict[str, Any]]:
    """What is measured: plain at every number of rows, and each variant at the largest."""
    common = {"pixels": 512 if cuda else 64, "steps": steps, "images": max(rows)}
    plain = [{"name": "fp32", "rows": count, **common, **BASE} for count in rows]
    chosen = {name: change for name, change in VARIANTS.items() if cuda or not change.get("compile")}
    return plain + [{"name": name, "rows": max(rows), **common, **BASE, **change} for name, change in chosen.items()]


def table(found: list[dict[str, Any]]) -> str:
    """The measurements as Markdown; gains are against fp32 at the same rows."""
    out = ["| settings | rows in a pass | peak memory | rows/s | memory | speed |", "|---|---|---|---|---|---|"]
    base = next((line for line in reversed(found) if line["name"] == "fp32" and "peak_gib" in line), None)
    for line in found:
        cells = [line["name"], str(line["rows"])]
        if "error" in line:
            cells += [line["error"], "", "", ""]
        else:
            cells += [f"{line['peak_gib']:.2f} GiB", f"{line['rows_per_second']:.3g}"]
            if base is not None and line["rows"] == base["rows"]:
                cells += [f"{line[key] / base[key]:.2f} x" for key in ("peak_gib", "rows_per_second")]
            else:
                cells += ["", ""]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8], help="rows of one pass")
    parser.add_argument("--steps", type=int, default=3, help="steps of an image, all of them trained")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/rows-memory.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(json.loads(arguments.worker))))
        return
    import torch

    make_model()
    found = []
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    for line in lines(arguments.rows, arguments.steps, torch.cuda.is_available()):
        words = [sys.executable, __file__, "--worker", json.dumps(line)]
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        if done.returncode:
            tail = done.stderr.strip().splitlines()
            print("\n".join(tail[-20:]), file=sys.stderr)
            answer = {"error": "out of memory" if "out of memory" in done.stderr else tail[-1] if tail else "killed"}
        else:
            answer = json.loads(done.stdout.splitlines()[-1])
        found.append(line | answer)
        print(json.dumps(found[-1]), flush=True)
    command = f"python benchmarks/{Path(__file__).name} {' '.join(sys.argv[1:])}".strip()
    arguments.out.write_text(json.dumps({"command": command, "lines": found}, indent=1) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
