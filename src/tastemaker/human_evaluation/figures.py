"""The figure of a comparison for a page and for a paper."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tastemaker.evaluation.figures import COLOURS, INK, MUTED, Plot, styled, to_svg
from tastemaker.evaluation.statistics import Interval
from tastemaker.human_evaluation.analysis import Result
from tastemaker.human_evaluation.study import Study
from tastemaker.printing import readable

_HEIGHT = 0.62
"""Of a bar; 1 from bar to bar."""


def preference_figure(study: Study, result: Result) -> Figure:
    """Bars of wins, ties and losses for each question and two models, with the win rate and its interval."""
    names = [readable(model.name) for model in study.models]
    rows = [(one, each) for one in result.asked for each in one.preferences if each.answers]
    figure = Figure(figsize=(5.6, 0.75 + 0.5 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for index, (_, each) in enumerate(rows):
        parts = ((each.wins, COLOURS[0]), (each.ties, MUTED), (each.losses, COLOURS[1]))
        left = 0.0
        for count, colour in parts:
            share = count / each.answers
            axis.barh(index, share, _HEIGHT, left, color=colour, alpha=0.4, linewidth=0)
            left += share
        assert each.rate is not None, "there are answers"
        rate = each.rate
        axis.errorbar(
            rate.estimate, index, xerr=[[rate.estimate - rate.low], [rate.high - rate.estimate]],
            fmt="o", color=INK, markersize=4, capsize=3, linewidth=1.3,
        )  # fmt: skip
        axis.text(0.012, index, names[each.first], color=INK, va="center", parse_math=False)
        axis.text(0.988, index, names[each.second], color=INK, va="center", ha="right", parse_math=False)
    axis.axvline(0.5, color=INK, linewidth=0.9, linestyle="--")
    axis.set_yticks(
        range(len(rows)), [readable(study.questions[one.question].name) for one, _ in rows], parse_math=False
    )
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(False)
    axis.set_xlabel("preferred")
    return figure


def best_figure(study: Study, result: Result) -> Figure:
    """For each question how often each model's image was the best of all, with intervals."""
    names = [readable(model.name) for model in study.models]
    asked = [one for one in result.asked if one.best]
    figure = Figure(figsize=(5.6, 2.9), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(names)
    for model, name in enumerate(names):
        shares: list[Interval] = [one.best[model].share for one in asked]
        at = [index + (model - (len(names) - 1) / 2) * width for index in range(len(asked))]
        heights = [share.estimate for share in shares]
        axis.bar(at, heights, 0.92 * width, color=COLOURS[model], alpha=0.75, linewidth=0, label=name)
        below = [share.estimate - share.low for share in shares]
        above = [share.high - share.estimate for share in shares]
        axis.errorbar(at, heights, yerr=[below, above], fmt="none", ecolor=INK, capsize=3, linewidth=1.2)
    axis.axhline(1 / len(names), color=INK, linewidth=0.9, linestyle="--")
    axis.set_xticks(
        range(len(asked)), [readable(study.questions[one.question].name) for one in asked], parse_math=False
    )
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set_ylabel("best of all")
    legend = axis.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=len(names), borderpad=0, borderaxespad=0.4, handlelength=1.0,
        labelcolor=INK,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def plots(study: Study, result: Result) -> list[Plot]:
    """The figures for a page."""
    level = f"{100 * study.stopping.level:.4g} %"
    tied = any(each.ties for one in result.asked for each in one.preferences)
    ties, half = ("the grey part ties, ", ", which counts ties as half") if tied else ("", "")
    with styled():
        made = [
            Plot(
                "How often each is preferred",
                f"Of each bar the left part are answers that prefer the model on the left, {ties}and the right part "
                f"answers that prefer the model on the right. The dot is the win rate{half}, with its {level} "
                "interval; at the dashed line neither is preferred.",
                to_svg(preference_figure(study, result), "preferences", "How often each model is preferred"),
            )
        ]
        if any(one.best for one in result.asked):
            made.append(
                Plot(
                    "How often each is the best of all",
                    f"The share of answers by which a model's image is the best, with its {level} interval; the dashed "
                    "line is what chance gives.",
                    to_svg(best_figure(study, result), "best", "How often each model is the best of all"),
                )
            )
    return made


def save_figures(folder: Path, study: Study, result: Result) -> list[Path]:
    """The figures as SVG and as PNG of 300 dots an inch, on white; their paths."""
    paths = []
    with styled():
        figures = {"preferences": preference_figure(study, result)}
        if any(one.best for one in result.asked):
            figures["best"] = best_figure(study, result)
        for name, figure in figures.items():
            figure.set_facecolor("white")
            for ending in ("svg", "png"):
                paths.append(folder / f"{name}.{ending}")
                # Without the date, so that the same result gives the same file.
                metadata = {"Date": None} if ending == "svg" else {"Software": None}
                figure.savefig(paths[-1], dpi=300, metadata=metadata, facecolor="white")
    return paths
