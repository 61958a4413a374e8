"""What a person sees while a run goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from tastemaker.printing import Output


def plain(value: float, sign: bool = False) -> str:
    """A reward's figure with three decimals, or three digits where these would hide it or be too long."""
    decimals = value == 0 or 0.01 <= abs(value) < 1e6
    return format(value, ("+" if sign else "") + (".3f" if decimals else ".3g"))


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "round": ("round", "{:d}".format),
    "reward/mean": ("reward", plain),
    "reward/std": ("std", plain),
    "reward/base_stds": ("in base std", "{:+.2f}".format),
    "reward/base_difference": ("above the base", lambda value: plain(value, sign=True)),
    "judge/correct": ("shows the prompt", "{:.0%}".format),
    "pair_accuracy": ("pairs in order", "{:.0%}".format),
    "clip_fraction": ("clipped", "{:.0%}".format),
    "approx_kl": ("approx. KL", "{:.1e}".format),
    "seconds/round": ("s/round", "{:.1f}".format),
}
ROWS = 12


class Display:
    """Bars for rounds and for the phase at hand, and a table of the last rounds.

    Where the output is not a terminal (a log file, CI), one plain line a round instead.
    """

    def __init__(self, rounds: int, done: int = 0, enabled: bool = True) -> None:
        # A run goes on when its output cannot be shown any more.
        output: Any = Output(sys.stdout)
        self.console = Console(file=output, quiet=not enabled)
        self.rounds, self.records = rounds, []
        self.started, self.done_at_start = time.monotonic(), done
        self.bars = Progress(
            TextColumn("{task.description:<10}"), BarColumn(bar_width=40), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
        )  # fmt: skip
        self.all_rounds = self.bars.add_task("rounds", total=rounds, completed=done)
        self.phase_task: TaskID | None = None
        self.live = Live(console=self.console, refresh_per_second=4, get_renderable=self._render)
        self.interactive = enabled and self.console.is_terminal

    def __enter__(self) -> Display:
        if self.interactive:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.phase_task is not None:
            self.bars.remove_task(self.phase_task)
            self.phase_task = None
        if self.interactive:
            self.live.stop()

    def log(self, text: str) -> None:
        """A line that stays on the screen."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[None]:
        """A bar for one phase of a round; `advance` moves it."""
        if self.phase_task is not None:
            self.bars.remove_task(self.phase_task)
        self.phase_task = self.bars.add_task(name, total=total)
        yield

    def leave_out(self, seconds: float) -> None:
        """Keeps seconds that no later round will take, those of compiling, out of the estimate of what is left."""
        self.started += seconds

    def advance(self, count: int = 1) -> None:
        if self.phase_task is not None:
            self.bars.advance(self.phase_task, count)

    def round_done(self, record: Mapping[str, float]) -> None:
        self.bars.advance(self.all_rounds)
        self.records.append(record)
        if not self.interactive:
            cells = [f"{title} {text(record[key])}" for key, (title, text) in COLUMNS.items() if key in record]
            done = int(record["round"])
            each = (time.monotonic() - self.started) / max(1, done - self.done_at_start)
            left = each * (self.rounds - done)
            self.log(f"{'  '.join(cells)}  left {int(left) // 60}:{int(left) % 60:02d}")
            self.console.file.flush()

    def _render(self) -> Group:
        table = Table(box=None, padding=(0, 2), header_style="dim")
        keys = [key for key in COLUMNS if any(key in record for record in self.records)]
        for key in keys:
            table.add_column(COLUMNS[key][0], justify="right")
        for record in self.records[-ROWS:]:
            table.add_row(*(COLUMNS[key][1](record[key]) if key in record else "" for key in keys))
        return Group(table, self.bars) if self.records else Group(self.bars)
