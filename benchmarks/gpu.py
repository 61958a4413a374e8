"""What a GPU does with this package, step by step: docs/results/gpu.md says what is measured and how to read it.

    make gpu                                  # or: python benchmarks/gpu.py
    make gpu DEVICE=cpu                       # every step with small networks on a CPU, as a rehearsal
    python benchmarks/gpu.py --list           # the steps and their commands
    python benchmarks/gpu.py --only 'sd15*'   # some of them
    python benchmarks/gpu.py --fresh          # forget what was measured

Each step is a process of its own with a time limit. A step that fails or runs out of memory is recorded with its
reason, and the rest goes on. Steps that were measured, or ran out of memory, are not repeated in the next call; those
that failed are. No step is begun after `--minutes`. Results are in gpu.json in docs, and those of a rehearsal in
build/gpu-cpu.json; what the steps printed is in build/gpu-logs-DEVICE.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parent))
from gpu_steps import REHEARSAL, Scale, Step, card, plan
from gpu_table import table

from tastemaker.runs.atomic import replace_atomic

ROOT = Path(__file__).resolve().parents[1]
Status = Literal["measured", "out of memory", "failed", "too long", "skipped"]
KEPT: tuple[Status, ...] = ("measured", "out of memory")
"""What is not done again in the next call."""
MEMORY_SIGNS = ("OutOfMemoryError", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "MemoryError")
"""What is printed where memory runs out."""
GRACE = 20.0
"""Seconds that a step has to end after it was told to."""
MOST = 400
"""Characters of a reason."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int | None
    """Exit code, negative for a signal; None where the time limit ended it."""
    out: str
    """What it wrote to its standard output and error."""
    seconds: float


@dataclass(frozen=True)
class Record:
    """A step that was tried."""

    status: Status
    command: tuple[str, ...]
    """Of the attempt that the figures are of."""
    seconds: float
    """Of all attempts."""
    found: Mapping[str, Any] | None = None
    """What was measured."""
    reason: str | None = None
    """Why nothing was measured, or what else has to be known of what was."""
    commit: str | None = None
    """Of the repository."""


Run = Callable[[Step, Sequence[str], float], Ended]
"""Of a step, what Python is given, and the limit in seconds."""


def judge(ended: Ended, limit: float) -> tuple[Status, str | None]:
    """What became of a step, and why."""
    if ended.code is None:
        return "too long", f"ended after {limit:.0f} s"
    if ended.code == 0:
        return "measured", None
    if any(sign in ended.out for sign in MEMORY_SIGNS):
        return "out of memory", last_line(ended.out, MEMORY_SIGNS)
    if ended.code == -signal.SIGKILL:
        return "out of memory", "killed by signal 9, as Linux does where main memory runs out"
    return "failed", last_line(ended.out, ("tastemaker:", "Error", "error")) or f"exit code {ended.code}"


def last_line(text: str, signs: Sequence[str]) -> str | None:
    """The last line that holds one of the signs, or else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    chosen = [line for line in lines if any(sign in line for sign in signs)] or lines
    return chosen[-1][:MOST] if chosen else None


def answer(step: Step, ended: Ended) -> dict[str, Any]:
    """The figures of a step. Raises ValueError or OSError where there are none."""
    if step.kind == "tests":
        return tests(ElementTree.parse(ROOT / option(step.command, "--junitxml")).getroot())
    if step.kind == "trl":
        return json.loads((ROOT / option(step.command, "--out")).read_text())
    lines, found = ended.out.splitlines(), None
    for number, line in enumerate(lines):
        if line.startswith("{"):
            with contextlib.suppress(ValueError):  # a line of a warning
                found = json.JSONDecoder().raw_decode("\n".join(lines[number:]))[0]
    if found is None:
        raise ValueError("it printed no JSON object")
    return found


def option(command: Sequence[str], name: str) -> str:
    """The value of an option of a command."""
    return command[command.index(name) + 1]


def tests(root: ElementTree.Element) -> dict[str, Any]:
    """Counts and names of tests in a file that pytest wrote."""
    cases = list(root.iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = {
        case.get("name", ""): entry.get("message", "") for case in cases if (entry := case.find("skipped")) is not None
    }
    return {
        "passed": len(cases) - len(failed) - len(skipped), "failed": [case.get("name", "") for case in failed],
        "skipped": skipped,
    }  # fmt: skip


def attempt(step: Step, run: Run, limit: float) -> Record:
    """Does a step; where it runs out of memory and can be made smaller, once more so."""
    if step.needs is not None and not (ROOT / step.needs[0]).exists():
        return Record("skipped", step.command, 0.0, reason=f"{step.needs[0]} is not there: {step.needs[1]}")
    ended = run(step, step.command, limit)
    made = recorded(step, step.command, ended, limit)
    if made.status != "out of memory" or not step.smaller:
        return made
    begin, command = ended.seconds, (*step.command, *step.smaller)
    again = recorded(step, command, run(step, command, limit - begin), limit)
    told = f"at the full size: {made.reason}"
    return Record(
        again.status, command, begin + again.seconds, again.found,
        told if again.reason is None else f"{again.reason}; {told}",
    )  # fmt: skip


def recorded(step: Step, command: tuple[str, ...], ended: Ended, limit: float) -> Record:
    """What a process left, as a record."""
    status, reason = judge(ended, limit)
    found = None
    if status == "measured" or step.kind == "tests":
        try:
            found = answer(step, ended)
        except (OSError, ValueError, ElementTree.ParseError) as error:
            status, reason = (status, reason) if reason else ("failed", str(error))
    if found is not None and step.kind == "tests" and found["failed"]:
        reason = f"{len(found['failed'])} failed: {', '.join(found['failed'])}"[:MOST]
    return Record(status, command, ended.seconds, found, reason)


def left(steps: Sequence[Step], records: Mapping[str, Record], only: Sequence[str]) -> list[Step]:
    """The steps to do: those that are asked for and have no figures, with these commands."""
    return [
        step
        for step in steps
        if (not only or any(fnmatch.fnmatch(step.name, pattern) for pattern in only)) and not kept(step, records)
    ]


def kept(step: Step, records: Mapping[str, Record]) -> bool:
    """Whether a record stands for the step as it is now."""
    record = records.get(step.name)
    if record is None or record.status not in KEPT:
        return False
    return record.command in (step.command, (*step.command, *step.smaller))


def do(
    steps: Sequence[Step],
    records: dict[str, Record],
    run: Run,
    save: Callable[[], None],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    commit: str | None = None,
) -> list[Step]:
    """Does the steps, and returns those for which the time, in seconds, was too short."""
    end = clock() + seconds
    for number, step in enumerate(steps):
        rest = end - clock()
        if rest <= 0:
            return list(steps[number:])
        print(f"[{number + 1}/{len(steps)}] {step.name}: {step.about}", file=sys.stderr, flush=True)
        made = attempt(step, run, min(step.limit, rest))
        if made.status == "too long" and rest < step.limit:
            return list(steps[number:])  # it may be done in the next call
        records[step.name] = replace(made, commit=commit)
        save()
        told = made.status if made.reason is None else f"{made.status}: {made.reason}"
        print(f"    {told} ({made.seconds:.0f} s)", file=sys.stderr, flush=True)
    return []


def runner(device: str, logs: Path) -> Run:
    """Runs steps on this device, and keeps what they print."""
    logs.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT / "src"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    added = {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path), "DEVICE": device, "HF_HUB_OFFLINE": "1",
        **({"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"} if device == "cpu" else {}),
    }  # fmt: skip

    def run(step: Step, command: Sequence[str], limit: float) -> Ended:
        begin, log = time.monotonic(), logs / f"{step.name}.log"
        log.write_text("")
        # pytest warns of libraries that were imported before it.
        ends = forked if device == "cpu" and step.kind != "tests" else started
        code = ends(command, log, {**added, **step.environment}, limit)
        return Ended(code, log.read_text(errors="replace"), time.monotonic() - begin)

    return run


def started(command: Sequence[str], log: Path, environment: Mapping[str, str], limit: float) -> int | None:
    """The exit code of a Python of its own; None where it was ended after `limit` seconds."""
    with log.open("w") as printed:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=printed, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT,
            env={**os.environ, **environment}, start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_group(process.pid, process.wait)
            process.wait()


def forked(command: Sequence[str], log: Path, environment: Mapping[str, str], limit: float) -> int | None:
    """The same in a process that has the libraries imported (gpu_forked.py)."""
    from gpu_forked import fork

    process = fork(command, ROOT, log, environment).process
    try:
        process.join(limit)
        return process.exitcode
    finally:
        if process.pid is not None:
            end_group(process.pid, process.join)
        process.kill()
        process.join()


def end_group(number: int, wait: Callable[[float], Any]) -> None:
    """Ends a process and those that it started, also where Ctrl-C ends this program.

    torchrun's workers lead groups of their own, and are ended by torchrun when it is told to end.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(number, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(number, signal.SIGKILL)


def load(path: Path, machine: Mapping[str, Any]) -> dict[str, Record]:
    """The records of earlier calls. Ends the program where they are of another machine."""
    if not path.exists():
        return {}
    saved = json.loads(path.read_text())
    changed = [
        f"{name} {saved['machine'].get(name)} -> {machine.get(name)}"
        for name in ("device", "driver", "torch", "packages")
        if saved["machine"].get(name) != machine.get(name)
    ]
    if changed:
        raise SystemExit(f"{path} is of another machine ({'; '.join(changed)}): give --fresh, or another --out")
    return {name: Record(**one | {"command": tuple(one["command"])}) for name, one in saved["steps"].items()}


def scale_of(device: str, machine: Mapping[str, Any]) -> Scale:
    """Which steps this machine does. Ends the program where it lacks the device."""
    if device == "cpu":
        return REHEARSAL
    if "memory_gib" not in machine:
        raise SystemExit(
            f"torch {machine['torch']} finds no CUDA device: on a machine with a GPU, remove .venv, and `make gpu` "
            "installs a torch with CUDA; `make gpu DEVICE=cpu` rehearses without one"
        )
    return card(machine["memory_gib"])


def head() -> str | None:
    """The repository's commit; None outside git. With + where files differ from it."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=None, help="no step begins later; 25 on a GPU, else no limit")
    parser.add_argument("--only", default="", help="steps by name, with commas between them; * stands for anything")
    parser.add_argument("--list", action="store_true", help="print the steps and their commands, and end")
    parser.add_argument("--fresh", action="store_true", help="forget the steps that were done")
    parser.add_argument("--out", type=Path, default=None, help="where the results are kept")
    arguments = parser.parse_args()
    device = arguments.device
    if arguments.list:
        for step in plan(REHEARSAL if device == "cpu" else card(80)):
            print(f"{step.name}: {step.about}; at most {step.limit} s\n    python {' '.join(step.command)}")
        return 0
    run = runner(device, ROOT / f"build/gpu-logs-{device}")
    out = arguments.out or (ROOT / "build/gpu-cpu.json" if device == "cpu" else ROOT / "docs" / "gpu.json")
    first = plan(REHEARSAL)[0]
    about = attempt(first, run, first.limit)
    if about.found is None:
        raise SystemExit(f"this machine cannot be described: {about.reason}")
    steps = plan(scale_of(device, about.found))
    records = {} if arguments.fresh else load(out, about.found)
    records[first.name] = about

    def save() -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: vars(record) for name, record in records.items()}
        content = {"command": f"make gpu DEVICE={device}", "device": device, "machine": about.found, "steps": kept}
        replace_atomic(out, (json.dumps(content, indent=1) + "\n").encode())

    only = [pattern for pattern in arguments.only.split(",") if pattern]
    minutes = arguments.minutes or (25.0 if device == "cuda" else float("inf"))
    save()
    rest = do(left(steps, records, only), records, run, save, 60 * minutes, commit=head())
    print(table(steps, {name: vars(record) for name, record in records.items()}, about.found))
    print(f"\n{out}")
    if rest:
        print(
            f"{len(rest)} steps are left ({', '.join(step.name for step in rest)}): the same command goes on with them"
        )
    return 0


if __name__ == "__main__":
    # As Ctrl-C: the step that runs is ended with all that it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped: the same command goes on where it was", file=sys.stderr)
        sys.exit(130)
