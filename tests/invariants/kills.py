"""Kills runs with SIGKILL at random moments, resumes them, and compares them with a run that was left alone.

    python tests/invariants/kills.py --count 200 [--seed 0] [--work DIR]

Each trial is a run of seconds on a tiny random model. Half of the kills come from outside after a random time. The
other half hit a moment of a random kind (a denoising step, a call of the reward, a micro-batch, a write or fsync or
rename of a checkpoint, the removal of an old one, ...), drawn from a list of all moments of an undisturbed run; a
write is then left half done. A trial may be killed up to three times in a row. Prints one JSON object; exit code 1
unless every run ends as the undisturbed one: weights, optimizer, state, metrics (without seconds), images, adapter.

Runs are forked from a process that has imported everything and never trained, so that starting one takes no time.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tiny
from tastemaker.cli import resume as _resume  # noqa: F401
from tastemaker.cli import train as _train  # noqa: F401
from tastemaker.cli.main import main as command
from tastemaker.diffusion import sampler
from tastemaker.evaluation import scoring
from tastemaker.report import page as _report  # noqa: F401
from tastemaker.runs import atomic
from tastemaker.training import progress, recording, run, update

SETTINGS = [
    "--prompts", "ddpo-animals", "--rounds", "4", "sampling.steps=4", "sampling.samples=8", "sampling.per_prompt=2",
    "sampling.batch=4", "optimizer.updates=2", "optimizer.rows=8", "optimizer.lr=1e-3", "checkpoint.keep=2",
    "evaluation.every=2", "evaluation.prompts=2", "evaluation.per_prompt=2", "advantage.min_count=2",
]  # fmt: skip
PHASES = [
    (sampler, "sample", "sample"), (scoring, "leaf_scores", "score"), (update, "accumulate", "update"),
    (run, "save_checkpoint", "save"), (atomic, "remove", "prune"), (recording, "append_metrics", "metrics"),
    (recording, "save_grid", "images"),
    (run, "write_adapter", "adapter"), (run, "write_report", "report"), (run, "truncate_metrics", "resume"),
]  # fmt: skip


class Moments:
    """Counts the moments of a run, and ends it at the one chosen."""

    def __init__(self, stop_at: int = -1, record: list[str] | None = None) -> None:
        self.stop_at, self.record, self.count, self.phases = stop_at, record, 0, ["other"]

    def pass_by(self, final: Callable[[], Any] = lambda: None) -> None:
        if self.record is not None:
            self.record.append(self.phases[-1])
        if self.count == self.stop_at:
            final()
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def watch(self) -> None:
        """Puts itself into everything that a run does."""
        for module, name, phase in PHASES:
            setattr(module, name, self._in_phase(getattr(module, name), phase))
        for name in ("fsync", "replace", "mkdir", "unlink", "rmdir"):
            setattr(os, name, self._before(getattr(os, name)))
        advance, write = progress.Display.advance, os.write

        def counted(display: progress.Display, count: int = 1) -> None:
            self.pass_by()
            advance(display, count)

        def torn(handle: int, data: Any) -> int:
            self.pass_by(lambda: write(handle, bytes(data[: len(data) // 2])))
            return write(handle, data)

        progress.Display.advance = counted  # type: ignore[method-assign]
        os.write = torn

    def _before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.pass_by()
            return function(*arguments, **named)

        return wrapped

    def _in_phase(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.phases.append(phase)
            try:
                self.pass_by()
                return function(*arguments, **named)
            finally:
                self.phases.pop()

        return wrapped


@contextmanager
def silence(log: Path) -> Iterator[None]:
    """The output of this process goes to a file."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    yield


def attempt(words: list[str], log: Path, moments: Moments | None, seconds: float | None) -> tuple[int, list[str]]:
    """Runs a command in a forked process; returns its exit code, negative for a signal, and the moments recorded."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            with silence(log):
                if moments is not None:
                    moments.watch()
                code = command(words)
                if moments is not None and moments.record is not None:
                    log.with_suffix(".moments").write_text(json.dumps(moments.record))
                sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)  # whatever happened: a fork that unwinds further waits for threads that it does not have
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # a child that has ended is a zombie until it is waited for
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    file = log.with_suffix(".moments")
    return code, json.loads(file.read_text()) if file.exists() else []


def fingerprint(folder: Path) -> dict[str, Any]:
    """All that a run leaves, by name, without what depends on the clock."""
    found: dict[str, Any] = {"metrics": []}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        found["metrics"].append({k: v for k, v in json.loads(line).items() if not k.startswith("seconds/")})
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.parent.name == "adapter":
            # The library writes the file's metadata in an order that differs from process to process.
            with safe_open(path, "pt") as file:
                keys = sorted(file.keys())
                hashes = [hashlib.sha256(file.get_tensor(key).numpy().tobytes()).hexdigest() for key in keys]
                found[name] = dict(zip(keys, hashes, strict=True)) | file.metadata()
        elif path.is_file() and path.name not in ("metrics.jsonl", "env.json", "report.html", "README.md"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.is_file():
            found[name] = "there"
    return found


def trial(number: int, work: Path, start: list[str], undisturbed: list[str], length: float) -> tuple[Path, list[str]]:
    """One run that is killed, and resumed until it ends. Returns its folder and where the kills hit."""
    rng, out, hits = random.Random(number), work / "trial" / "run", []
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    log = work / f"trial-{number}.log"
    for kill in range(20):
        words = ["resume", str(out)] if out.exists() else [*start, "--out", str(out)]
        moments, seconds = None, None
        if kill < 1 + number % 3:
            if (number + kill) % 2:
                seconds = rng.uniform(0, length)
            else:
                kind = rng.choice(sorted(set(undisturbed)))
                moments = Moments(rng.choice([i for i, name in enumerate(undisturbed) if name == kind]))
        code, _ = attempt(words, log, moments, seconds)
        if code == 0:
            return out, hits
        if code != -signal.SIGKILL:
            raise SystemExit(f"trial {number}: exit code {code}\n{log.read_text()[-3000:]}")
        hits.append("time" if seconds is not None else kind)
    raise SystemExit(f"trial {number} does not end:\n{log.read_text()[-3000:]}")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    work = arguments.work or Path(tempfile.mkdtemp())
    start = ["train", "ddpo-compressibility", "--model", str(tiny.folder(work / "sd")), *SETTINGS]
    began = time.monotonic()
    # The whole run has the same name as the trials', since its name stands in some of its files.
    code, undisturbed = attempt(
        [*start, "--out", str(work / "whole/run")], work / "whole.log", Moments(record=[]), None
    )
    length = time.monotonic() - began
    if code:
        raise SystemExit((work / "whole.log").read_text())
    expected = fingerprint(work / "whole/run")
    equal, kills, different = 0, Counter(), []
    for number in range(arguments.seed, arguments.seed + arguments.count):
        out, hits = trial(number, work, start, undisturbed, length)
        found = fingerprint(out)
        kills.update(hits)
        names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        equal += not names
        if names:
            different.append({"trial": number, "hits": hits, "files": names})
    figures = {
        "runs": arguments.count, "equal": equal, "kills": sum(kills.values()), "where": dict(sorted(kills.items())),
        "moments of a run": dict(sorted(Counter(undisturbed).items())), "different": different,
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    print(json.dumps(figures, indent=1))
    return 0 if equal == arguments.count else 1


if __name__ == "__main__":
    sys.exit(main())
