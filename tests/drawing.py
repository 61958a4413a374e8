"""Reports whose figures are made and not drawn: matplotlib's drawing is half the time of a small run.

Everything else of a report is done. Tests that look at figures have them drawn.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

from tastemaker.evaluation import figures

_TO_SVG = figures.to_svg


def undrawn() -> Any:
    """A patch that puts an empty figure in the place of each."""
    empty = lambda figure, name, label: f'<svg viewBox="0 0 1 1" role="img" aria-label="{label}"></svg>'  # noqa: E731
    return mock.patch.object(figures, "to_svg", empty)


def drawn() -> Any:
    """A patch that has figures drawn where `undrawn` is in force."""
    return mock.patch.object(figures, "to_svg", _TO_SVG)
