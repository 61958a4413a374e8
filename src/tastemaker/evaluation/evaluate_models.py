"""`tastemaker evaluate`: models on the same prompts and seeds, measured with intervals, and resumed after a stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tastemaker.evaluation.evaluation_files import EvaluationFolder, open_folder
from tastemaker.evaluation.evaluation_plan import EvaluationPlan
from tastemaker.evaluation.evaluation_table import ImageFigures, TableRow, extractor_of, image_figures, table
from tastemaker.evaluation.evaluation_tables import result_rows, write_tables
from tastemaker.evaluation.sampled_images import sample_images
from tastemaker.evaluation.scored_images import score_batches, score_images
from tastemaker.runs.locking import only_writer


class Phases(Protocol):
    """Where the progress is shown."""

    def __call__(self, name: str, total: int) -> Callable[[int], None]:
        """Begins a phase of `total` parts; what it returns is called with how many more of them are done."""
        ...


@dataclass(frozen=True)
class ModelEvaluation:
    """A finished evaluation."""

    plan: EvaluationPlan
    folder: EvaluationFolder
    figures: Mapping[tuple[str, str], ImageFigures]
    """Of every image, by model and prompt set."""
    table: tuple[TableRow, ...]
    files: tuple[str, ...]
    """Names of the tables in the folder."""

    def rows(self, metric: str) -> dict[tuple[str, str], TableRow]:
        """The figures of one metric, by model and prompt set."""
        return {(row.model, row.prompts): row for row in self.table if row.metric == metric}


def evaluate_models(plan: EvaluationPlan, path: Path, phases: Phases) -> ModelEvaluation:
    """Samples, scores and measures in `path`, going on where an earlier call stopped, and writes the tables.

    Raises ConfigError where the folder has something else or another process writes to it, a TastemakerError where
    anything fails. What was sampled and scored before stays on disk.
    """
    extractor = extractor_of(plan)
    folder = open_folder(path, plan)
    with only_writer(path):
        sample_images(plan, folder, phases("sampling", plan.batch_count))
        scores = score_images(plan, folder, phases("scoring", score_batches(plan)))
        count = len(plan.models) * len(plan.prompt_sets)
        measured = phases("measuring", count)
        figures = image_figures(plan, folder, scores)
        rows = table(plan, folder, figures, extractor, lambda: measured(1))
        files = write_tables(path, result_rows(plan, folder, figures), rows)
    return ModelEvaluation(plan, folder, figures, tuple(rows), tuple(files))
