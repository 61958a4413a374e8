"""Matplotlib figures as inline SVG that takes its colours and font from the page's CSS variables.

Figures are drawn in the light theme's colours; `to_svg` then replaces each colour by its variable, so that the
same drawing turns dark with the page. All text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Okabe and Ito's palette, which stays distinct for colour-blind readers; one CSS variable (--c0, ...) each.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, GRID = "#1c2024", "#5c6670", "#e3e6ea"
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line"} | {c: f"--c{i}" for i, c in enumerate(COLOURS)}
_BORDERS = {"-": "solid", "--": "dashed", ":": "dotted"}
_SIZE = (5.6, 3.35)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 8, "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "text.color": MUTED, "axes.grid": True,
    "axes.grid.axis": "y", "grid.color": GRID, "grid.linewidth": 0.7, "axes.spines.top": False,
    "axes.spines.right": False, "axes.spines.left": False, "axes.axisbelow": True, "xtick.major.size": 0,
    "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0, "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round", "lines.solid_joinstyle": "round", "legend.frameon": False,
    "axes.unicode_minus": True, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip


def styled() -> AbstractContextManager[None]:
    """Within it figures have the report's style, whatever matplotlib's settings on this machine are."""
    return style.context(["default", _STYLE])


@dataclass(frozen=True)
class Plot:
    """A plot with the sentence that tells a newcomer how to read it. `svg` is trusted markup."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Look:
    """How a measurement is drawn: the colours of its line and dots, the line's style, and whether a legend names it."""

    line: str
    dots: str = COLOURS[1]
    dashes: str = "-"
    labelled: bool = True


def to_svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an <svg> element for HTML: no foreign ids, no namespaces, colours by variable, width fluid."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": f"tastemaker-{name}"}):  # unlike salts keep two plots' clip paths apart
        figure.savefig(buffer, format="svg")
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None, "matplotlib's svg backend always writes a viewBox"
    svg = re.sub(r"<svg[^>]*>", f'<svg {box[0]} role="img" aria-label="{label}">', svg, count=1)
    svg = svg.replace("'DejaVu Sans'", "var(--font)").replace(' target="_blank"', "")
    return re.sub(r"#[0-9a-f]{6}", lambda match: _variable(match[0]), svg)


def _variable(colour: str) -> str:
    return f"var({_VARIABLES[colour]})" if colour in _VARIABLES else colour


def panels(rows: int = 1, ratios: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    return figure, list(axes)


def finish(figure: Figure, axes: Sequence[Axes], x_label: str, title: str, caption: str, *, whole: bool = True) -> Plot:
    """The plot; `whole` says that the horizontal axis counts, in rounds for example."""
    for axis in axes:
        axis.margins(x=0.02 if whole else 0.08)
        low, high = axis.dataLim.intervalx  # (inf, -inf) where nothing is drawn
        if whole and 0 <= high - low < 1:  # one round only: without a width, its axis would count in hundredths of one
            axis.set_xlim(low - 1, high + 1)
        axis.xaxis.set_major_locator(MaxNLocator(integer=whole, nbins=8, steps=[1, 2, 5, 10]))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(
                loc="lower left", bbox_to_anchor=(0, 1), ncols=6, borderpad=0, borderaxespad=0.4,
                handlelength=1.3, columnspacing=1.2, handletextpad=0.6, labelcolor=INK,
            )  # fmt: skip
    axes[-1].set_xlabel(x_label)
    return Plot(title, caption, to_svg(figure, title, title))


def curve(
    axis: Axes, x: Sequence[float], y: Sequence[float], colour: str, label: str | None = None, dashes: str = "-"
) -> None:
    """A curve; a single point, which has no length, becomes a dot."""
    axis.plot(x, y, dashes, color=colour, label=label, marker="o" if len(x) == 1 else "", markersize=4)


def evaluation_dots(axis: Axes, x: Sequence[float], y: Sequence[float], colour: str, label: str | None = None) -> None:
    """Dots that link to the images of their evaluation: the page's slider listens to #after-N."""
    drawn = axis.scatter(x, y, s=26, color=colour, edgecolors="none", label=label, zorder=3)
    drawn.set_urls([f"#after-{at:.0f}" for at in x])


def intervals(axis: Axes, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str) -> None:
    """Thin vertical lines from low to high, under dots."""
    axis.vlines(x, low, high, color=colour, linewidth=1, alpha=0.6, zorder=2.5)


def share_axis(axis: Axes, label: str) -> None:
    """An axis for shares in [0, 1], in per cent."""
    axis.set_ylim(-0.03, 1.03)
    axis.set_yticks([0, 0.5, 1])
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set_ylabel(label)


def from_zero(axis: Axes) -> None:
    """Starts the axis at 0, with room for the highest dot."""
    highest = axis.dataLim.ymax
    axis.set_ylim(0, 1.06 * highest if highest > 0 else 1)


def scale_y(axis: Axes, values: Sequence[float]) -> None:
    """Logarithmic where the values above zero span more than an order of magnitude; plain numbers elsewhere."""
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 10 * min(positive):
        axis.set_yscale("log", nonpositive="mask")
    else:
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}".replace("-", "−"))


def look(index: int) -> Look:
    """Of the run with this index among several; line styles change when the colours are used up."""
    colour = COLOURS[index % len(COLOURS)]
    return Look(colour, colour, ("-", "--", ":")[index // len(COLOURS) % 3], labelled=False)


def swatch(index: int) -> str:
    """CSS of a short line that looks like the run with this index in the plots."""
    run = look(index)
    return f"border-top: 3px {_BORDERS[run.dashes]} {_variable(run.line)}"
