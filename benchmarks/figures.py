"""How the figures of docs/results look."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def plain_axes(axes: Axes) -> None:
    """A light grid, and no frame at the top and on the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, out: Path) -> None:
    """As SVG and as PNG, beside each other."""
    figure.savefig(out.with_suffix(".svg"))
    figure.savefig(out.with_suffix(".png"), dpi=110)
