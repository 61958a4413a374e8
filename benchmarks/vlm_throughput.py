"""Answers a second of a vision-language model on a server, by the requests under way at once.

    python benchmarks/vlm_throughput.py [--latency 0.2] [--size 512] [--in-flight 1 8 64] [--out FILE.json]

The server is one of the tests' (a process of its own, FastAPI), speaks OpenAI's protocol and answers `yes` after
`latency` seconds, however many ask: what is measured is the client, and the most a server could give is
in_flight / latency. Each figure is the median of three scorings of drawings, one query each, none asked twice, JPEG
and reading included. The rest is what the client's core did per query, by its own clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def serve(latency: float) -> None:
    """Answers until its standard input ends; says its name for the reward in a line."""
    sys.path.insert(0, str(ROOT / "tests"))
    from speaking import Speaking  # pyright: ignore[reportMissingImports]

    with Speaking(lambda n: latency, say=lambda question, url: ("yes", {})) as server:
        print(server.name, flush=True)
        sys.stdin.read()


def measure(name: str, in_flight: int, queries: int, size: int) -> dict[str, Any]:
    """Queries a second, and the client's milliseconds of processor for each."""
    import random

    import numpy as np
    import torch

    from tastemaker.drawings import render, sample_scene
    from tastemaker.rewards.base import score
    from tastemaker.rewards.registry import load_reward
    from tastemaker.rewards.vlm.settings import Vlm

    rng = random.Random(0)
    reward = load_reward(f"vlm-yes-no:{name}", vlm=Vlm(in_flight=in_flight, cache=0))
    rates, busy = [], []
    for _ in range(3):
        pixels = np.stack([np.asarray(render(sample_scene(rng)[0], size, rng)) for _ in range(4)])
        x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).repeat(queries // 4, 1, 1, 1)
        began, worked = time.perf_counter(), time.process_time()
        score(reward, x, [f"a star {place}" for place in range(queries)])
        rates.append(queries / (time.perf_counter() - began))
        busy.append(1000 * (time.process_time() - worked) / queries)
    return {
        "in_flight": in_flight, "queries": queries, "queries_per_second": round(statistics.median(rates), 1),
        "client_ms_per_query": round(statistics.median(busy), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/vlm-throughput.json")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.latency)
    import torch

    torch.set_num_threads(1)
    command = [sys.executable, __file__, "--serve", "--latency", str(args.latency)]
    lines = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        name = server.stdout.readline().strip()
        for in_flight in args.in_flight:
            line = measure(name, in_flight, max(16, 4 * in_flight), args.size)
            lines.append(line | {"at_most": round(in_flight / args.latency, 1)})
            print(lines[-1], flush=True)
        server.stdin.close()
    told = {
        "latency": args.latency, "size": args.size, "lines": lines, "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 1), "machine": platform.machine(), "openai": version("openai"),
    }  # fmt: skip
    args.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
