"""The report's plots: what is drawn, and the sentence below each that tells a newcomer how to read it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from tastemaker.evaluation.figures import (
    COLOURS,
    INK,
    MUTED,
    Look,
    Plot,
    curve,
    evaluation_dots,
    finish,
    from_zero,
    intervals,
    look,
    panels,
    scale_y,
    share_axis,
    styled,
)
from tastemaker.printing import readable
from tastemaker.report.data import PHASES, Run, base_scale, measures, number, seconds_by_phase, series
from tastemaker.report.intervals import at_evaluations

DONE = "rounds of training done"
MOST_PANELS = 3


def run_plots(run: Run) -> list[Plot]:
    """The plots of one run, without those that the run has no numbers for."""
    with styled():
        rewards = [_reward(run), *_parts(run), *_others(run)]
        traded = [_against_divergence([run]), *_against_others(run), _collapse(run)]
        rest = [draw(run) for draw in (_judge, _unseen, _pairs, _ratio, _update, _seconds, _diversity)]
    return [plot for plot in (*rewards, *traded, *rest) if plot is not None]


def compare_plots(runs: Sequence[Run]) -> list[Plot]:
    """Curves of several runs laid over each other; the page names them, with a swatch each."""
    sentence = "Each line is one run's training images and each dot one of its evaluations"
    shown = (
        ("Reward in base standard deviations", "reward/base_stds", "base std",
         f"{sentence}; 0 is the base model's mean reward, and 1 is one standard deviation of its images above it."),
        ("Reward", "reward/mean", "reward",
         f"{sentence}, in the reward's own units, which only runs with the same reward share."),
        ("Judge", "judge/correct", "judged correct",
         f"{sentence}; the height is the share of images that show what the prompt says, by an independent judge."),
        ("Diversity", "diversity", "diversity",
         f"{sentence}; the height tells how much images of one prompt differ from each other."),
        ("Reward on prompts not trained on", "unseen/reward/base_stds", "base std",
         "Each dot is one evaluation of a run on prompts that it is not trained on, in the unit of the first plot."),
        ("Judge on prompts not trained on", "unseen/judge/correct", "judged correct",
         "Each dot is one evaluation of a run on prompts that it is not trained on: the share that show their prompt."),
    )  # fmt: skip
    with styled():
        made = [*(_overlay(runs, *plot) for plot in shown), _against_divergence(runs)]
    return [plot for plot in made if plot is not None]


def _measured(axis: Axes, run: Run, key: str, style: Look) -> bool:
    """A line of training images and dots of evaluations; whether there was either.

    Round r draws its images before it trains, so they belong to the model after r - 1 rounds.
    """
    x, y = series(run.rounds, "round", key, shift=-1)
    at, evaluated = series(run.evaluations, "evaluation", f"eval/{key}")
    if x:
        curve(axis, x, y, style.line, "training images" if style.labelled else None, style.dashes)
    if at:
        _intervals(axis, run, key, style.dots)
        evaluation_dots(axis, at, evaluated, style.dots, "evaluation" if style.labelled else None)
    return bool(x or at)


def _intervals(axis: Axes, run: Run, key: str, colour: str) -> None:
    found = at_evaluations(run, key)
    if found:
        ends = found.values()
        intervals(axis, list(found), [end.low for end in ends], [end.high for end in ends], colour)


def _reward(run: Run) -> Plot | None:
    figure, (axis,) = panels()
    _spread(axis, run)
    if not _measured(axis, run, "reward/mean", Look(COLOURS[0])):
        return None
    axis.set_ylabel("reward")
    scale, right = base_scale(run), ""
    if scale is not None:
        _right_axis(axis, *scale)
        right = ", and the right axis counts standard deviations of the base model's images from their mean"
    return finish(
        figure, [axis], DONE, "Reward",
        "How much the reward likes each round's images, with the spread from image to image; dots are "
        f"evaluations on fixed prompts and seeds, with their 95 % intervals over prompts{right}.",
    )  # fmt: skip


def _reward_key(run: Run) -> str:
    """The reward in standard deviations of the base model's, or in its own unit where there are none."""
    return "reward/base_stds" if measures(run, "reward/base_stds") else "reward/mean"


def _reward_label(run: Run) -> str:
    return "reward, base std" if _reward_key(run) == "reward/base_stds" else "reward"


def _right_axis(axis: Axes, mean: float, std: float) -> None:
    """The same reward, counted in standard deviations of the base model's images from their mean."""

    def to_stds(reward: ArrayLike) -> np.ndarray:
        return (np.asarray(reward) - mean) / std

    def from_stds(stds: ArrayLike) -> np.ndarray:
        return np.asarray(stds) * std + mean

    right = axis.secondary_yaxis("right", functions=(to_stds, from_stds))
    right.set_ylabel("base std")
    right.spines["right"].set_visible(False)


def _spread(axis: Axes, run: Run) -> None:
    """Bands from the worst to the best image of a round, and one standard deviation about its mean."""
    keys = ("round", "reward/mean", "reward/std", "reward/min", "reward/max")
    rows = [[number(record, key) for key in keys] for record in run.rounds]
    rows = [[value for value in row if value is not None] for row in rows if None not in row]
    if not rows:
        return
    if len(rows) == 1:  # a band needs a width
        rows = [[rows[0][0] + side, *rows[0][1:]] for side in (-0.1, 0.1)]
    at = [row[0] - 1 for row in rows]
    bands = (
        ("worst to best", 0.09, [row[3] for row in rows], [row[4] for row in rows]),
        ("± 1 std", 0.20, [row[1] - row[2] for row in rows], [row[1] + row[2] for row in rows]),
    )
    for label, alpha, low, high in bands:
        axis.fill_between(at, low, high, color=COLOURS[0], alpha=alpha, linewidth=0, label=label)


def _parts(run: Run) -> list[Plot]:
    return _one_by_one(
        run, "reward/parts/", "Parts of the reward",
        "Each reward that the trained one is put together from, by itself and in its own units, before it is weighted, "
        "clipped or standardised: one that falls while another rises pays for it.",
    )  # fmt: skip


def _others(run: Run) -> list[Plot]:
    return _one_by_one(
        run, "rewards/", "Held-out rewards",
        "Rewards that are measured and never trained on, in their own units, on the evaluations' fixed images: what "
        "rises here too was not only learned for the trained reward's sake.",
    )  # fmt: skip


def _one_by_one(run: Run, under: str, title: str, caption: str) -> list[Plot]:
    """A panel for each measure whose name begins with `under`, a few to a plot; rings are of unseen prompts."""
    names = measures(run, under)
    plots = []
    for start in range(0, len(names), MOST_PANELS):
        shown = names[start : start + MOST_PANELS]
        figure, axes = panels(len(shown))
        for index, (axis, name) in enumerate(zip(axes, shown, strict=True)):
            _measured(axis, run, under + name, Look(COLOURS[0], labelled=index == 0))
            _rings(axis, run, under + name, labelled=index == 0)
            axis.set_title(readable(name), loc="right", fontsize="small", color=MUTED, parse_math=False)
        plots.append(finish(figure, axes, DONE, title if not start else f"{title}, continued", caption))
    return plots


def _rings(axis: Axes, run: Run, key: str, labelled: bool) -> None:
    """Evaluations on prompts that are not trained on."""
    at, values = series(run.evaluations, "evaluation", f"eval/unseen/{key}")
    if at:
        label = "unseen prompts" if labelled else None
        _intervals(axis, run, f"unseen/{key}", COLOURS[1])
        axis.scatter(at, values, s=26, facecolors="none", edgecolors=COLOURS[1], label=label, zorder=4)


def _traded(axis: Axes, run: Run, x: str, y: str, style: Look) -> bool:
    """Evaluations in their order, one of their figures against another; whether there are two. Rings have warnings."""
    points = [
        (at, across, up, number(record, "over_optimisation/warnings"))
        for record in run.evaluations
        for at, across, up in [tuple(number(record, key) for key in ("evaluation", f"eval/{x}", f"eval/{y}"))]
        if at is not None and across is not None and up is not None
    ]
    if len(points) < 2:
        return False
    axis.plot([p[1] for p in points], [p[2] for p in points], style.dashes, color=style.line, alpha=0.6)
    drawn = axis.scatter([p[1] for p in points], [p[2] for p in points], s=26, color=style.dots, zorder=3)
    drawn.set_urls([f"#after-{p[0]:.0f}" for p in points])
    warned = [p for p in points if p[3]]
    if warned:
        axis.scatter(
            [p[1] for p in warned], [p[2] for p in warned], s=70, facecolors="none", edgecolors=INK, zorder=2,
            label="warning" if style.labelled else None,
        )  # fmt: skip
    return True


def _against_divergence(runs: Sequence[Run]) -> Plot | None:
    """How much reward was bought for how much divergence: Gao et al. 2023 plot it over the square root."""
    figure, (axis,) = panels()
    keys = {_reward_key(run) for run in runs}
    key = keys.pop() if len(keys) == 1 else "reward/mean"
    looks = [look(index) for index in range(len(runs))] if len(runs) > 1 else [Look(COLOURS[0])]
    drawn = [_traded(axis, run, "kl", key, style) for run, style in zip(runs, looks, strict=True)]
    if not any(drawn):
        return None
    axis.set_xscale("function", functions=(lambda x: np.sqrt(np.clip(x, 0, None)), np.square))
    axis.set_xlim(0, 1.05 * max(axis.dataLim.xmax, 1e-9))
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axis.set_ylabel("reward, base std" if key == "reward/base_stds" else "reward")
    return finish(
        figure, [axis], "divergence from the base model, nats (square-root scale)", "Reward and divergence",
        "Evaluations in their order, from the base model on the left: how far the model has gone from it, and the "
        "reward that it has for that. Where the line goes on to the right and no longer up, the model changes without "
        "any gain; rings are evaluations with a warning of over-optimisation.",
        whole=False,
    )  # fmt: skip


def _against_others(run: Run) -> list[Plot]:
    """What is not trained on against the reward, a few panels to a plot."""
    names = {f"rewards/{name}": readable(name) for name in measures(run, "rewards/")}
    names |= {"judge/correct": "judged correct", "diversity": "diversity"}
    key = _reward_key(run)
    shown = {
        name: label
        for name, label in names.items()
        if len(series(run.evaluations, f"eval/{key}", f"eval/{name}")[0]) > 1
    }
    plots = []
    for start in range(0, len(shown), MOST_PANELS):
        part = list(shown.items())[start : start + MOST_PANELS]
        figure, axes = panels(len(part))
        for index, (axis, (name, label)) in enumerate(zip(axes, part, strict=True)):
            _traded(axis, run, key, name, Look(COLOURS[0], labelled=index == 0))
            axis.set_title(label, loc="right", fontsize="small", color=MUTED, parse_math=False)
        title = "Reward and what is not trained on" + ", continued" * bool(start)
        caption = (
            "Evaluations in their order, the trained reward across: a line that falls to the right loses what it shows "
            "for more reward. Rings are evaluations with a warning of over-optimisation."
        )
        plots.append(finish(figure, axes, f"trained {_reward_label(run)}", title, caption, whole=False))
    return plots


def _collapse(run: Run) -> Plot | None:
    names = {
        "difference/prompts": "between prompts", "difference/seeds": "between seeds", "grid_power": "grid",
    }  # fmt: skip
    shown = {name: label for name, label in names.items() if series(run.evaluations, "evaluation", f"eval/{name}")[0]}
    if not shown:
        return None
    figure, axes = panels(len(shown))
    for axis, (name, label) in zip(axes, shown.items(), strict=True):
        evaluation_dots(axis, *series(run.evaluations, "evaluation", f"eval/{name}"), COLOURS[1])
        from_zero(axis)
        axis.set_ylabel(label)
    return finish(
        figure, axes, DONE, "Signs of collapse",
        "How much images of different prompts differ, and images of one prompt: both go to 0 where the model draws one "
        "image again and again. Below the share of the fine structure that repeats, which rises where a grid or "
        "checkerboard covers the images.",
    )  # fmt: skip


def _unseen(run: Run) -> Plot | None:
    keys = {_reward_key(run): _reward_label(run), "judge/correct": "judged correct"}
    keys = {key: label for key, label in keys.items() if series(run.evaluations, "evaluation", f"eval/unseen/{key}")[0]}
    if not keys:
        return None
    figure, axes = panels(len(keys))
    for index, (axis, key) in enumerate(zip(axes, keys, strict=True)):
        at, values = series(run.evaluations, "evaluation", f"eval/{key}")
        _intervals(axis, run, key, COLOURS[0])
        evaluation_dots(axis, at, values, COLOURS[0], None if index else "trained prompts")
        _rings(axis, run, key, labelled=not index)
        axis.set_ylabel(keys[key])
        if key == "judge/correct":
            share_axis(axis, keys[key])
    return finish(
        figure, axes, DONE, "Prompts not trained on",
        "Evaluations on the training prompts (dots) and on prompts that are never trained on (rings): where the rings "
        "stay behind, what was learned is those prompts rather than what they have in common.",
    )  # fmt: skip


def _judge(run: Run) -> Plot | None:
    figure, (top, bottom) = panels(2)
    if not _measured(bottom, run, "judge/correct", Look(COLOURS[2])):
        return None
    _measured(top, run, _reward_key(run), Look(COLOURS[0], labelled=False))
    top.set_ylabel(_reward_label(run))
    share_axis(bottom, "judged correct")
    return finish(
        figure, [top, bottom], DONE, "Reward and judge",
        "The reward (top) should rise while the share of images that show what the prompt says, by a judge that "
        "training never sees (bottom), holds: where they part, the model games the reward.",
    )  # fmt: skip


def _ratio(run: Run) -> Plot | None:
    curves = {
        name: series(run.rounds, "round", f"ratio_deviation/{key}")
        for name, key in (("max", "max"), ("mean", "mean"), ("first update", "first"))
    }
    clipped = series(run.rounds, "round", "clip_fraction")
    if not clipped[0] and not any(x for x, _ in curves.values()):
        return None
    figure, (top, bottom) = panels(2, (3, 2))
    for (name, (x, y)), colour, style in zip(curves.items(), (*COLOURS[1::-1], MUTED), ("-", "-", ":"), strict=True):
        if any(y):
            curve(top, x, y, colour, name, style)
    algorithm = run.config.get("algorithm")
    clip = number(algorithm, "clip") if isinstance(algorithm, dict) else None
    if clip:
        top.axhline(clip, color=INK, linewidth=0.9, linestyle="--", label="clip range")
    scale_y(top, [value for _, y in curves.values() for value in y])
    top.set_ylabel("|ratio − 1|")
    curve(bottom, *clipped, COLOURS[4])
    share_axis(bottom, "clipped")
    return finish(
        figure, [top, bottom], "round", "Size of the policy's steps",
        "How far a round's updates moved the probability of its own images (top; the first update should start "
        "near 0), and how many of the ratios were cut off for moving too far (bottom).",
    )  # fmt: skip


def _update(run: Run) -> Plot | None:
    kl, norm = (series(run.rounds, "round", key) for key in ("approx_kl", "grad_norm"))
    shown = [
        (points, colour, label, sentence)
        for points, colour, label, sentence in (
            (kl, COLOURS[0], "approx. KL", "how far the model moved within a round, as an approximate KL divergence"),
            (norm, COLOURS[3], "gradient norm", "how long the gradient was before clipping"),
        )
        if points[0]
    ]
    if not shown:
        return None
    figure, axes = panels(len(shown))
    for axis, ((x, y), colour, label, _) in zip(axes, shown, strict=True):
        curve(axis, x, y, colour)
        scale_y(axis, y)
        axis.set_ylabel(label)
    said = ", and below ".join(sentence for *_, sentence in shown)
    return finish(
        figure, axes, "round", "Stability of the updates",
        f"{said[0].upper()}{said[1:]}: spikes mean that training shakes, and a smaller learning rate calms it.",
    )  # fmt: skip


def _pairs(run: Run) -> Plot | None:
    ordered, loss = (series(run.rounds, "round", key) for key in ("pair_accuracy", "loss"))
    if not ordered[0]:
        return None
    figure, (top, bottom) = panels(2)
    curve(top, *ordered, COLOURS[2])
    share_axis(top, "in order")
    curve(bottom, *loss, COLOURS[0])
    scale_y(bottom, loss[1])
    bottom.set_ylabel("loss")
    return finish(
        figure, [top, bottom], "round", "Preferences",
        "The share of the round's pairs that the model sees in the right order, compared with the reference (top): "
        "half of them is chance, and ties, as in the very first update, are not in order. Below the loss.",
    )  # fmt: skip


def _seconds(run: Run) -> Plot | None:
    spent = {int(record["round"]): seconds_by_phase(record) for record in run.rounds}
    if not any(sum(phases.values()) for phases in spent.values()):
        return None
    span = range(min(spent), max(spent) + 1)
    edges = [n - 0.5 for n in (*span, span.stop)]
    figure, (axis,) = panels()
    floor = [0.0] * len(span)
    for phase, colour in zip((*PHASES, "other"), (*COLOURS[:5], MUTED), strict=True):
        top = [below + spent.get(n, {}).get(phase, 0.0) for n, below in zip(span, floor, strict=True)]
        if top != floor:
            axis.stairs(top, edges, baseline=floor, fill=True, color=colour, linewidth=0, alpha=0.85, label=phase)
        floor = top
    from_zero(axis)
    axis.set_ylabel("seconds a round")
    return finish(
        figure, [axis], "round", "Where the time goes",
        "Seconds spent in each phase of a round, stacked: drawing images, scoring them, training on them, and "
        "now and then evaluating and saving.",
    )  # fmt: skip


def _diversity(run: Run) -> Plot | None:
    figure, (axis,) = panels()
    if not _measured(axis, run, "diversity", Look(COLOURS[0])):
        return None
    from_zero(axis)
    axis.set_ylabel("diversity")
    return finish(
        figure, [axis], DONE, "Diversity",
        "How much images of one prompt differ from each other: a fall towards 0 means that the model draws the "
        "same image again and again.",
    )  # fmt: skip


def _overlay(runs: Sequence[Run], title: str, key: str, label: str, caption: str) -> Plot | None:
    figure, (axis,) = panels()
    drawn = False
    for index, run in enumerate(runs):
        drawn |= _measured(axis, run, key, look(index))
    if not drawn:
        return None
    axis.set_ylabel(label)
    if key.endswith("judge/correct"):
        share_axis(axis, label)
    if key == "diversity":
        from_zero(axis)
    return finish(figure, [axis], DONE, title, caption)
