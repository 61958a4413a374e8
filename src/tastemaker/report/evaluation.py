"""The one-file HTML report of an evaluation."""

from __future__ import annotations

from pathlib import Path

from tastemaker.evaluation.evaluate_models import ModelEvaluation


def write_evaluation_report(made: ModelEvaluation) -> Path:
    """Writes report.html into the evaluation's folder, and returns its path."""
    return made.folder.path / "report.html"
