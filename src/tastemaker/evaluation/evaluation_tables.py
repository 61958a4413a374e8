"""The tables of an evaluation as files: an image a row, and a figure a row."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tastemaker.evaluation.evaluation_files import EvaluationFolder, storing
from tastemaker.evaluation.evaluation_plan import EvaluationPlan
from tastemaker.evaluation.evaluation_table import ImageFigures, TableRow
from tastemaker.evaluation.statistics import Interval
from tastemaker.runs import atomic


def result_rows(
    plan: EvaluationPlan, folder: EvaluationFolder, figures: Mapping[tuple[str, str], ImageFigures]
) -> list[dict[str, Any]]:
    """A row for each image: model, prompt, seed, rewards, the judge's verdict, divergence and the image's file."""
    rows = []
    for model in plan.models:
        for prompt_set in plan.prompt_sets:
            draw, own = prompt_set.draw, figures[model.label, prompt_set.name]
            for index in range(len(draw)):
                rows.append(
                    {
                        "model": model.label, "prompts": prompt_set.name, "prompt": draw.prompts[index],
                        "prompt_index": draw.prompt_index[index], "seed": draw.sample_index[index],
                        **{f"reward/{label}": float(values[index]) for label, values in own.rewards.items()},
                        "correct": own.correct[index], "kl": None if own.kl is None else float(own.kl[index]),
                        "image": str(folder.image(model.label, prompt_set, index)),
                    }
                )  # fmt: skip
    return rows


def write_tables(path: Path, results: Sequence[Mapping[str, Any]], rows: Sequence[TableRow]) -> list[str]:
    """results.csv and .parquet, table.csv and .md; the names of those written. Parquet needs pyarrow.

    Raises StorageError.
    """
    figures = [row.as_dict() for row in rows]
    files = {
        "results.csv": _csv(results), "table.csv": _csv(figures), "table.md": markdown(rows).encode(),
    }  # fmt: skip
    table = _parquet(results)
    if table is not None:
        files["results.parquet"] = table
    with storing(path):
        for name, data in files.items():
            atomic.replace_atomic(path / name, data)
    return list(files)


def markdown(rows: Sequence[TableRow]) -> str:
    """The figures as a table in Markdown."""
    lines = [
        "Intervals of 95 % in brackets. Differences are to the base model, over the same prompts and seeds.\n",
        "| prompts | model | metric | value | difference | in base std | prompts x images | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        each = row.images // row.prompt_count
        cells = [
            row.prompts, row.model, row.metric + (" (trained)" if row.kind == "trained reward" else ""),
            interval_text(row.value), "" if row.difference is None else interval_text(row.difference, sign=True),
            "" if row.in_base_std is None else f"{row.in_base_std.estimate:+.2f}",
            f"{row.prompt_count} x {each}", row.note,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def interval_text(interval: Interval, sign: bool = False) -> str:
    """As in `0.123 [0.101, 0.145]`: three significant digits of the largest of them, and at most six decimals."""
    known = [abs(x) for x in (interval.estimate, interval.low, interval.high) if not math.isnan(x)]
    largest = max(known)
    decimals = min(6, max(0, 2 - math.floor(math.log10(largest)))) if largest > 0 else 2
    form = f"{'+' if sign else ''}.{decimals}f"
    if len(known) < 3:
        return f"{interval.estimate:{form}}"
    return f"{interval.estimate:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes | None:
    """None without pyarrow, which comes with `tastemaker[data]`."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        return None
    kinds = {
        "model": pa.string(), "prompts": pa.string(), "prompt": pa.string(), "prompt_index": pa.int64(),
        "seed": pa.int64(), "correct": pa.bool_(), "image": pa.string(),
    }  # fmt: skip
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in rows[0]])
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema), sink)
    return sink.getvalue().to_pybytes()
