"""The plots of an evaluation's report: distributions of rewards, and rewards against what they may cost."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from tastemaker.evaluation.evaluate_models import ModelEvaluation
from tastemaker.evaluation.evaluated_models import EvaluatedModel
from tastemaker.evaluation.figures import COLOURS, MUTED, Plot, finish, look, panels, styled
from tastemaker.printing import readable

BINS = 24
MOST_SETS = 3
"""Prompt sets in one figure."""
FAR = 6.0
"""Deviations of the base model beyond which images of a histogram stand in its last bin."""


def evaluation_plots(made: ModelEvaluation) -> list[Plot]:
    """The plots, without those that there are no numbers for."""
    with styled():
        plots = [_histogram(made, label) for label in made.plan.reward_labels.values()]
        plots += [_progress(made, label) for label in made.plan.reward_labels.values()]
        plots += [_against(made, cost) for cost in _costs(made)]
    return [plot for plot in plots if plot is not None]


def index_of(made: ModelEvaluation, label: str) -> int:
    """The number of a model, by which it has its colour."""
    return [one.label for one in made.plan.models].index(label)


def _histogram(made: ModelEvaluation, reward: str) -> Plot | None:
    """Rewards of all images in standard deviations of the base model's (thesis, Fig. 6.6)."""
    shown = made.plan.prompt_sets[:MOST_SETS]
    figure, axes = panels(len(shown))
    drawn = False
    for number, (axis, prompt_set) in enumerate(zip(axes, shown, strict=True)):
        found = {}
        for model in made.plan.models:
            own = made.figures[model.label, prompt_set.name].rewards[reward]
            base = own if model.reference is None else made.figures[model.reference, prompt_set.name].rewards[reward]
            if base.std() > 0:
                found[model.label] = np.clip((own - base.mean()) / base.std(), -FAR, FAR)
        if not found:
            continue
        drawn = True
        values = np.concatenate(list(found.values()))
        edges = np.linspace(min(-2.0, values.min()), max(2.0, values.max()), BINS + 1)
        for label, own in found.items():
            share, _ = np.histogram(own, edges)
            style = look(index_of(made, label))
            axis.stairs(share / len(own), edges, color=style.line, linestyle=style.dashes, linewidth=1.4)
            axis.stairs(share / len(own), edges, fill=True, color=style.line, alpha=0.12, linewidth=0)
        axis.set_ylabel("share of images")
        _name(axis, prompt_set.name, len(shown) > 1 or number > 0)
    if not drawn:
        return None
    return finish(
        figure, axes, f"{readable(reward)}, in the base model's standard deviations from its mean",
        f"Distribution of {readable(reward)}",
        "Each line is the images of one model: to the right of 0 are images that the reward likes better than the "
        f"base model's average image of the same prompt set. Images beyond ±{FAR:g} stand in the last bin.",
        whole=False,
    )  # fmt: skip


def _progress(made: ModelEvaluation, reward: str) -> Plot | None:
    """A run's rounds, where several of one run are evaluated."""
    runs = _rounds(made)
    if not runs:
        return None
    shown = made.plan.prompt_sets[:MOST_SETS]
    figure, axes = panels(len(shown))
    rows = made.rows(reward)
    for axis, prompt_set in zip(axes, shown, strict=True):
        for number, (name, models) in enumerate(runs.items()):
            found = [rows[one.label, prompt_set.name].difference for one in models]
            points = [(one.round or 0, other) for one, other in zip(models, found, strict=True) if other is not None]
            at = [0, *(round for round, _ in points)]
            y = [0.0, *(one.estimate for _, one in points)]
            below = [0.0, *(one.estimate - one.low for _, one in points)]
            above = [0.0, *(one.high - one.estimate for _, one in points)]
            colour = COLOURS[number % len(COLOURS)]
            label = readable(name).lstrip("_") if axis is axes[0] else None
            axis.errorbar(at, y, [below, above], color=colour, marker="o", markersize=4, elinewidth=0.9, label=label)
        axis.axhline(0, color=MUTED, linewidth=0.8)
        axis.set_ylabel("difference")
        _name(axis, prompt_set.name, len(shown) > 1)
    return finish(
        figure, axes, "rounds of training done", f"{readable(reward)} by round",
        "The difference to the base model, which is that of round 0, after some of a run's rounds, with its 95 % "
        "interval.",
    )  # fmt: skip


def _rounds(made: ModelEvaluation) -> dict[str, list[EvaluatedModel]]:
    runs: dict[str, list[EvaluatedModel]] = {}
    for one in made.plan.models:
        if one.round is not None and one.reference is not None:
            runs.setdefault(one.run, []).append(one)
    return {name: sorted(models, key=lambda one: one.round or 0) for name, models in runs.items() if len(models) > 1}


def _costs(made: ModelEvaluation) -> list[str]:
    """What trained rewards are plotted against: divergence, judge, diversity and the held-out rewards."""
    held_out = [row.metric for row in made.table if row.kind == "reward" and row.difference is not None]
    trained = {row.metric for row in made.table if row.kind == "trained reward"}
    found = [name for name in ("kl", "judge", "diversity") if made.rows(name)]
    return [*found, *(name for name in dict.fromkeys(held_out) if name not in trained)]


def _against(made: ModelEvaluation, cost: str) -> Plot | None:
    """The gain in the trained reward against another figure, a dot for each model and prompt set."""
    trained = [row for row in made.table if row.kind == "trained reward" and row.in_base_std is not None]
    costs = made.rows(cost)
    points = [(row, costs[row.model, row.prompts]) for row in trained if (row.model, row.prompts) in costs]
    points = [(row, other) for row, other in points if other.difference is not None or cost == "kl"]
    if not points:
        return None
    figure, (axis,) = panels()
    marks = ("o", "s", "^", "D", "v", "P")
    names = [one.name for one in made.plan.prompt_sets]
    for row, other in points:
        style, mark = look(index_of(made, row.model)), marks[names.index(row.prompts) % len(marks)]
        x = other.value if cost == "kl" or other.difference is None else other.difference
        y = row.in_base_std
        assert y is not None
        axis.errorbar(
            [x.estimate], [y.estimate], xerr=[[x.estimate - x.low], [x.high - x.estimate]],
            yerr=[[y.estimate - y.low], [y.high - y.estimate]], color=style.line, marker=mark, markersize=5,
            elinewidth=0.9, linestyle="",
        )  # fmt: skip
    for name, mark in zip(names, marks, strict=False):
        axis.plot([], [], mark, color=MUTED, markersize=5, label=readable(name))
    axis.axhline(0, color=MUTED, linewidth=0.8)
    axis.axvline(0, color=MUTED, linewidth=0.8)
    axis.set_ylabel("trained reward, base std")
    label = "divergence from the base model (kl, nats)" if cost == "kl" else f"difference in {readable(cost)}"
    return finish(
        figure, [axis], label, f"Trained reward against {readable(cost)}",
        "Each dot is a model on a prompt set, with 95 % intervals. "
        + ("Further right, the model is further from the base model." if cost == "kl" else
           "Dots to the left of 0 have lost in this measure what they may have gained in the reward."),
        whole=False,
    )  # fmt: skip


def _name(axis: Axes, name: str, shown: bool) -> None:
    if shown:
        axis.set_title(readable(name), loc="right", fontsize="small", color=MUTED, parse_math=False)
