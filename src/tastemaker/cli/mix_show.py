"""What `tastemaker mix` shows: a bar while it goes on, a table in the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tastemaker.evaluation.mixture import Plan
from tastemaker.printing import Output, print_lines


@contextmanager
def sweeping(plan: Plan) -> Iterator[Callable[[], None]]:
    """A bar over the network's calls; gives what advances it."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    output: Any = Output(sys.stderr)
    console = Console(file=output)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("sampling", total=plan.calls)
        yield lambda: progress.advance(task)


def show(plan: Plan, found: dict[str, Any], out: Path) -> None:
    """Prints the table, and where everything is."""
    output: Any = Output(sys.stdout)
    lines: list[str] = []
    if plan.rewards:
        Console(file=output).print(_table(plan, found))
        lines += ["mean reward, and in brackets its distance to the base model's in the base model's deviations"]
        lines += [str(out / "mix.png"), str(out / "grid.png")]
    print_lines(*lines, *(out / mixture["adapter"] for mixture in found["mixtures"]))


def _table(plan: Plan, found: dict[str, Any]) -> Table:
    table = Table("mixture", title=f"{plan.mode}: {' and '.join(map(str, plan.adapters))}")
    for reward in plan.rewards:
        table.add_column(reward, justify="right")
    table.add_column("average", justify="right")
    base = [f"{found['base'][reward]['mean']:.3f} (+0.00)" for reward in plan.rewards]
    table.add_row("base model", *base, "+0.00", end_section=True)
    best = max(mixture["average"] for mixture in found["mixtures"])
    for mixture in found["mixtures"]:
        measured = [mixture["rewards"][reward] for reward in plan.rewards]
        cells = [f"{one['mean']:.3f} ({one['standardised']:+.2f})" for one in measured]
        style = "bold" if mixture["average"] == best else ""
        table.add_row(mixture["name"], *cells, f"{mixture['average']:+.2f}", style=style)
    return table
