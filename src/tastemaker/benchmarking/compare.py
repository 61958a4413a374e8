"""What `tastemaker bench --compare` measures: rounds of some settings beside rounds of the same with one change.

Each option has a process of its own, as compilers, allocators and implementations of attention belong to a process. The
two processes take turns, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tastemaker.config.schema import Config
from tastemaker.config.yaml_file import dump_config
from tastemaker.errors import ConfigError, TastemakerError

AS_GIVEN = "as given"


@dataclass(frozen=True)
class Measured:
    """One option's rounds."""

    option: str
    """The settings that are changed, as on the command line; `as given` for none."""
    refused: str = ""
    """Why it cannot be used here; the figures are 0 then."""
    walls: list[float] = field(default_factory=list)
    """Seconds of each round, without compiling."""
    ratios: list[float] = field(default_factory=list)
    """Of each round to the round of the settings as given that was made just before it."""
    images_per_second: float = 0.0
    rows_per_second: float = 0.0
    compile_seconds: float = 0.0
    """Before the rounds that are measured."""
    peak_memory_gib: float = 0.0
    """On a CPU of the whole process, loading included; on a GPU of its tensors."""

    @property
    def wall(self) -> float:
        """The median of `walls`; 0 where it was refused."""
        return statistics.median(self.walls or [0.0])

    @property
    def ratio(self) -> float:
        """The median of `ratios`; 0 where it was refused."""
        return statistics.median(self.ratios or [0.0])


def usual_options(config: Config, cuda: bool) -> list[str]:
    """The settings that make the network itself faster or smaller and that `config` does not have yet.

    Those that no device of this kind can use are left out; others are tried, and refused with a reason.
    """
    speed = config.speed
    found = {
        "speed.compile=true": not speed.compile,
        "speed.channels_last=true": not speed.channels_last,
        **{f"speed.attention={name}": speed.attention != name for name in ("flash", "efficient", "math")},
        "speed.tf32=true": cuda and not speed.tf32,
        "precision=bf16": config.precision != "bf16",
        "precision=fp16": cuda and config.precision != "fp16",
        "tuning.gradient_checkpointing=true": not config.tuning.gradient_checkpointing,
    }
    return [option for option, shown in found.items() if shown]


def compare(
    config: Config,
    options: Mapping[str, Config | TastemakerError],
    repeats: int,
    log: Callable[[str], None] = lambda text: None,
) -> list[Measured]:
    """Measures `repeats` rounds of each option and as many of `config` between them; `config` comes first.

    A round before them warms up. An option that is an error, or fails, has its reason in `refused`, and the others are
    measured all the same. Raises ConfigError where `config` itself fails.
    """
    rounds: list[dict[str, float]] = []
    found: list[Measured] = []
    with Worker(config) as base:
        for option, changed in options.items():
            if isinstance(changed, TastemakerError):
                found.append(Measured(option, str(changed)))
            else:
                try:
                    with Worker(changed) as other:
                        pairs = [(base.round(), other.round()) for _ in range(repeats)]
                        rounds += [first for first, _ in pairs]
                        found.append(_measured(option, pairs, other.compile_seconds))
                except WorkerFailed as error:
                    if base.failed:
                        raise
                    found.append(Measured(option, str(error)))
            last = found[-1]
            log(f"{option}: {last.refused or f'{last.wall:.2f} s, {last.ratio:.2f} of the settings as given'}")
        rounds += [base.round() for _ in range(repeats - len(rounds))]
        given = _measured(AS_GIVEN, [(one, one) for one in rounds], base.compile_seconds)
    return [given, *found]


def _measured(option: str, pairs: Sequence[tuple[dict[str, float], dict[str, float]]], compiled: float) -> Measured:
    own = [second for _, second in pairs]
    return Measured(
        option,
        walls=[one["wall"] for one in own],
        ratios=[second["wall"] / first["wall"] for first, second in pairs],
        images_per_second=statistics.median(one["images_per_second"] for one in own),
        rows_per_second=statistics.median(one["rows_per_second"] for one in own),
        compile_seconds=compiled,
        peak_memory_gib=own[0]["peak_memory_gib"],
    )


class WorkerFailed(ConfigError):
    """A process that measures could not go on; the message says why."""


class Worker:
    """A process that makes rounds of a config when it is asked to."""

    def __init__(self, config: Config) -> None:
        self.failed = False
        self.compile_seconds = 0.0
        self._config = config
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name) / "log"

    def __enter__(self) -> Worker:
        """Starts it; returns when it has made its first round. Raises WorkerFailed where it cannot."""
        file = Path(self._folder.name) / "config.yaml"
        file.write_text(dump_config(self._config), encoding="utf-8")
        # Not a pipe, which would be full at some time.
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tastemaker.benchmarking.compare_worker", str(file)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8",
            )  # fmt: skip
        try:
            self.compile_seconds = self._answer()["compile_seconds"]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def round(self) -> dict[str, float]:
        """Has it make a round, and returns what that took. Raises WorkerFailed where it cannot."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("round\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # _answer says why
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            self.failed = True
            raise WorkerFailed(answer["error"])
        return answer

    def _last_words(self) -> str:
        code, lines = self._process.wait(), self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"its process ended with exit code {code}" + (f": {lines[-1]}" if lines else "")
