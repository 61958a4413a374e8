"""The results of benchmarks/gpu.py as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpu_steps import Step

Records = Mapping[str, Mapping[str, Any]]
"""By the names of steps, as in the JSON file."""


def table(steps: Sequence[Step], records: Records, machine: Mapping[str, Any]) -> str:
    """All tables; what was not measured is listed after them with the reasons."""
    parts = [about(machine), *(part for make in (benches, ratios, fits, others) if (part := make(steps, records)))]
    if missing := list(unmeasured(steps, records)):
        parts.append("\n".join(["Not measured:", "", *missing]))
    return "\n\n".join(parts)


def about(machine: Mapping[str, Any]) -> str:
    """The machine in one line."""
    memory = f", {machine['memory_gib']:.1f} GiB" if "memory_gib" in machine else ""
    driver = f", driver {machine['driver']}, CUDA {machine['cuda']}" if "driver" in machine else ""
    rehearsal = "" if "memory_gib" in machine else " (a rehearsal with small networks: the figures say nothing)"
    return f"{machine['device']}{memory}{driver}, torch {machine['torch']}{rehearsal}"


def measured(steps: Sequence[Step], records: Records, kind: str) -> Iterator[tuple[Step, Mapping[str, Any]]]:
    """Steps of a kind with their figures."""
    for step in steps:
        found = records.get(step.name, {}).get("found")
        if step.kind == kind and found is not None:
            yield step, found


def rows_of(title: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first two columns are words and the rest numbers. Nothing without rows."""
    if not rows:
        return ""
    sides = ["---" if number < 2 else "---:" for number in range(len(title))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (title, sides, *rows))


def benches(steps: Sequence[Step], records: Records) -> str:
    """`tastemaker bench`, a row for each step."""
    title = ("step", "what", "px", "at once", "images/s", "rows/s", "peak GiB", "round s", "overhead")
    rows = [
        (
            step.name, f"{step.about}, {found['settings']['precision']}", str(found["settings"]["height"]),
            str(found["settings"]["rows"]), number(found["images_per_second"]), number(found["rows_per_second"]),
            f"{found['peak_memory_gib']:.2f}", f"{found['wall']:.2f}", f"{found['overhead']:.3f}",
        )
        for step, found in measured(steps, records, "bench")
    ]  # fmt: skip
    return rows_of(title, rows)


def ratios(steps: Sequence[Step], records: Records) -> str:
    """The largest difference of a log-probability before the first update, by rows in a micro-batch."""
    found = list(measured(steps, records, "ratio"))
    sizes = sorted({int(size) for _, one in found for size in one["sum"]})
    rows = [
        (step.name, f"log-probability, {kind}", *(difference(one[kind].get(str(size))) for size in sizes))
        for step, one in found
        for kind in ("sum", "mean")
    ]
    return rows_of(("step", "largest difference", *(f"{size} rows" for size in sizes)), rows)


def fits(steps: Sequence[Step], records: Records) -> str:
    """The most rows that fit a card."""
    title = ("step", "what", "most rows", "too many", "limit GiB", "peak GiB", "estimated GiB")
    rows = []
    for step, found in measured(steps, records, "fit"):
        last = found["fits"][-1] if found["fits"] else None
        rows.append(
            (
                step.name, step.about, str(found["largest"]), optional(found["too_many"]), optional(found["limit_gib"]),
                *(("", "") if last is None else (f"{last['peak_gib']:.2f}", f"{last['estimated_gib']:.2f}")),
            )
        )  # fmt: skip
    return rows_of(title, rows)


def others(steps: Sequence[Step], records: Records) -> str:
    """Tests, and the round beside trl's."""
    lines = []
    for step, found in measured(steps, records, "tests"):
        skipped = f", {len(found['skipped'])} skipped" if found["skipped"] else ""
        lines.append(f"{step.name}: {found['passed']} passed, {len(found['failed'])} failed{skipped}")
    for step, found in measured(steps, records, "trl"):
        medians = ", ".join(f"{side} {value:.2f} s" for side, value in found["median_seconds"].items())
        lines.append(f"{step.name}: a round takes {medians}; ours / trl = {found['median_ratio']:.3f}")
    return "\n".join(lines)


def unmeasured(steps: Sequence[Step], records: Records) -> Iterator[str]:
    """A line for each step without figures, or whose figures have a reservation."""
    for step in steps:
        record = records.get(step.name)
        if record is None:
            yield f"- {step.name}: not run yet"
        elif record["reason"] is not None:
            yield f"- {step.name}: {record['status']}: {record['reason']}"


def number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def difference(value: float | None) -> str:
    return "out of memory" if value is None else f"{value:.1e}"


def optional(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
