"""The one-file HTML report of a reward model: how well it predicts people's comparisons, and where it does not."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tastemaker.evaluation.figures import COLOURS, INK, MUTED, Plot, curve, finish, panels, scale_y, share_axis, styled
from tastemaker.report.grid import LARGEST, PIXEL_ART
from tastemaker.report.page import render_page, write_page
from tastemaker.reward_models.comparisons import Comparisons, opened
from tastemaker.reward_models.statistics import calibration

if TYPE_CHECKING:
    from tastemaker.reward_models.train import Result

PAIRS = 12
"""Pairs shown of those that it predicts best, and worst."""
FEW = 100
"""Validation pairs below which the accuracy says little."""


@dataclass(frozen=True)
class Cell:
    """An image of a pair."""

    src: str
    text: str
    preferred: bool


@dataclass(frozen=True)
class ShownPair:
    """Two images of a prompt, and which one people prefer."""

    prompt: str
    cells: tuple[Cell, Cell]


@dataclass(frozen=True)
class Section:
    """Pairs under a heading."""

    title: str
    hint: str
    pairs: tuple[ShownPair, ...]


def write_report(result: Result, path: Path) -> Path:
    """Writes the page."""
    source = resources.files("tastemaker.reward_models").joinpath("report.html").read_text(encoding="utf-8")
    facts, found = result.comparisons.facts, result.comparisons
    sections, size = shown_pairs(result)
    page = render_page(
        source, title=f"{result.folder.name} · tastemaker", name=str(result.folder), heading=_heading(result),
        accuracy=result.accuracy, train_accuracy=result.train_accuracy, calibration_error=result.calibration_error,
        prompt_use=result.prompt_use, said=_said(result), notes=notes(result), plots=plots(result), sections=sections,
        costs=[
            ("Training tasks", f"{len(found.training):,}"), ("Validation tasks", f"{len(found.validation):,}"),
            ("Pairs", f"{facts['pairs']:,}"), ("Ties", f"{facts['ties']:,}"), ("Images", f"{facts['images']:,}"),
            ("Prompts", f"{facts['prompts']:,}"), *([("Labelers", facts["labelers"])] if "labelers" in facts else []),
            ("Best epoch", ", ".join(map(str, result.epochs))),
        ],
        settings=_settings(result), ratio=f"{size[0]} / {size[1]}", pixelated=max(size) <= PIXEL_ART,
    )  # fmt: skip
    return write_page(path, page)


def _heading(result: Result) -> str:
    architecture = result.architecture
    kinds = {
        "unet": f"A reward model from the U-Net of {architecture.model}",
        "transformer": f"A reward model from the transformer of {architecture.model}",
        "clip": f"A reward model from the CLIP {architecture.clip}",
        "head": f"A reward model on features of {architecture.base}",
    }
    return kinds[architecture.kind]


def _said(result: Result) -> str:
    members = result.training.members
    standing = (
        "all compared images" if result.training.standardise == "compared" else "images sampled for their prompts"
    )
    ensemble = f" It is the mean of {members} models, whose spread is its uncertainty." if members > 1 else ""
    again = " The model in this folder was trained again on all tasks." if result.training.refit else ""
    return f"Rewards are standardised: 0 is the mean and 1 the standard deviation over {standing}.{ensemble}{again}"


def notes(result: Result) -> list[str]:
    """What a reader should know before relying on the model, a sentence each."""
    found = []
    if result.comparisons.facts.get("labelers") == 1:
        found.append("All labels are one labeler's, so that it is not known how far people agree on them.")
    if result.accuracy is None:
        found.append("Nothing was set apart for validation: how well it predicts is not known.")
    elif result.accuracy.count < FEW:
        found.append(f"The accuracy is that of {result.accuracy.count} pairs only: look at its interval.")
    elif result.accuracy.low <= 0.5:
        found.append("The interval of the accuracy includes 50 %, which is what guessing gives.")
    return found


def _settings(result: Result) -> list[tuple[str, str]]:
    rows = {
        "data": result.comparisons.source, "data digest": result.comparisons.digest,
        **{f"architecture.{name}": value for name, value in asdict(result.architecture).items()},
        **{f"training.{name}": value for name, value in asdict(result.training).items()},
        "learning rate": result.training.rate(result.architecture.kind), "device": result.facts["device"],
        "command": result.facts["command"] or "(Python)", **result.facts["versions"],
    }  # fmt: skip
    return [(name, str(value)) for name, value in rows.items()]


# ---------------------------------------------------------------- plots


def plots(result: Result) -> list[Plot]:
    """Loss and accuracy over the epochs, calibration, the learning curve, and the rewards."""
    with styled():
        made = [_learning(result), _calibration(result), _curve(result), _rewards(result)]
    return [plot for plot in made if plot is not None]


def _learning(result: Result) -> Plot | None:
    figure, (top, bottom) = panels(2)
    for index, best in enumerate(result.epochs):
        rows = [row for row in result.history if row["member"] == index]
        x = [row["epoch"] for row in rows]
        for axis, name in ((top, "loss"), (bottom, "accuracy")):
            first = index == 0 and axis is top
            curve(axis, x, [row[name] for row in rows], COLOURS[0], "training" if first else None)
            if f"validation_{name}" in rows[0]:
                curve(axis, x, [row[f"validation_{name}"] for row in rows], COLOURS[1], "validation" if first else None)
                axis.axvline(best, color=MUTED, linewidth=0.8, linestyle=":")
    top.set_ylabel("loss")
    scale_y(top, [row["loss"] for row in result.history])
    share_axis(bottom, "accuracy")
    return finish(
        figure, [top, bottom], "epoch", "Learning",
        "Loss and accuracy on the tasks that are trained on, and on those of prompts that are not. Where validation "
        "turns, the model begins to learn by heart; the weights of the dotted epoch are kept.",
    )  # fmt: skip


def _calibration(result: Result) -> Plot | None:
    bins = calibration(result.validation) if len(result.validation.better) else ()
    if not bins:
        return None
    figure, (axis,) = panels()
    axis.plot([50, 100], [50, 100], color=MUTED, linewidth=0.9, linestyle="--", label="calibrated")
    largest = max(one.count for one in bins)
    axis.plot([100 * one.confidence for one in bins], [100 * one.right for one in bins], color=COLOURS[0])
    axis.scatter(
        [100 * one.confidence for one in bins], [100 * one.right for one in bins],
        s=[12 + 60 * one.count / largest for one in bins], color=COLOURS[0], zorder=3, label="pairs, by their number",
    )  # fmt: skip
    axis.set_ylabel("observed, %")
    return finish(
        figure, [axis], "predicted probability of the image with the higher reward, %", "Calibration",
        "How often people prefer the image with the higher reward, by how sure the model is of it. Below the line it "
        "is too sure, above it too unsure. A pair with several votes counts in shares, a tie as one half.",
    )  # fmt: skip


def _curve(result: Result) -> Plot | None:
    if len(result.curve) < 2:
        return None
    figure, (axis,) = panels()
    x = [count for count, _ in result.curve]
    low, high = [100 * one.low for _, one in result.curve], [100 * one.high for _, one in result.curve]
    axis.fill_between(x, low, high, color=COLOURS[0], alpha=0.15, linewidth=0, label="95 % interval")
    curve(axis, x, [100 * one.value for _, one in result.curve], COLOURS[0], "validation accuracy")
    axis.axhline(50, color=INK, linewidth=0.8, linestyle=":", label="guessing")
    axis.set_ylabel("accuracy, %")
    return finish(
        figure, [axis], "training tasks", "Learning curve",
        "The accuracy of one model by the number of tasks that it was trained on. Where it still rises at the end, "
        "more labels will help.",
    )  # fmt: skip


def _rewards(result: Result) -> Plot | None:
    if not result.rewards:
        return None
    figure, (axis,) = panels()
    values = np.concatenate([mean.numpy() for mean, _ in result.rewards])
    axis.hist(values, bins=30, color=COLOURS[0], alpha=0.8)
    axis.set_ylabel("images")
    spread = np.concatenate([deviation.numpy() for _, deviation in result.rewards])
    said = f" The members of the ensemble differ by {spread.mean():.2f} on average." if spread.any() else ""
    return finish(
        figure, [axis], "reward, standard deviations", "Rewards",
        f"The rewards of the validation images, in standard deviations from the mean.{said}",
    )  # fmt: skip


# ---------------------------------------------------------------- pairs


def shown_pairs(result: Result) -> tuple[list[Section], tuple[int, int]]:
    """The validation pairs with the largest wrong and right differences, and width and height of an image."""
    found = result.comparisons
    ranked: list[tuple[float, int, int, int]] = []
    for number, (task, (mean, _)) in enumerate(zip(found.validation, result.rewards, strict=True)):
        for pair in task.pairs:
            if pair.better != 0.5:
                winner, loser = (pair.a, pair.b) if pair.better > 0.5 else (pair.b, pair.a)
                ranked.append(((mean[winner] - mean[loser]).item(), number, winner, loser))
    ranked.sort()
    worst = _one_a_task([entry for entry in ranked if entry[0] < 0])
    best = _one_a_task([entry for entry in reversed(ranked) if entry[0] > 0])
    sections = [
        Section("Where it contradicts people most", "The framed image is the one that people prefer; under each is its "
                "reward. The model has it the other way round, and is surest of these.", _shown(result, worst)),
        Section("Where it agrees most surely", "The same for pairs that it predicts right, with the largest "
                "differences.", _shown(result, best)),
    ]  # fmt: skip
    sizes = [opened(found.images[task.images[0]]).size for task in found.validation[:1]]
    return [section for section in sections if section.pairs], sizes[0] if sizes else (1, 1)


def _one_a_task(ranked: Sequence[tuple[float, int, int, int]]) -> list[tuple[float, int, int, int]]:
    """The first pair of each task, at most PAIRS."""
    seen: dict[int, tuple[float, int, int, int]] = {}
    for entry in ranked:
        seen.setdefault(entry[1], entry)
    return list(seen.values())[:PAIRS]


def _shown(result: Result, ranked: Sequence[tuple[float, int, int, int]]) -> tuple[ShownPair, ...]:
    pairs = []
    for _, number, winner, loser in ranked:
        task, (mean, deviation) = result.comparisons.validation[number], result.rewards[number]
        first, second = (
            Cell(
                _data_uri(result.comparisons, task.images[place]),
                _number(mean[place], deviation[place]),
                place == winner,
            )
            for place in sorted((winner, loser))
        )
        pairs.append(ShownPair(task.prompt, (first, second)))
    return tuple(pairs)


def _number(mean: object, deviation: object) -> str:
    text = f"{float(mean):.2f}".replace("-", "−")  # type: ignore[arg-type]
    return f"{text} ± {float(deviation):.2f}" if float(deviation) else text  # type: ignore[arg-type]


def _data_uri(found: Comparisons, image: int) -> str:
    """The image for an <img>: small ones exactly, larger ones shrunk."""
    opened_image, buffer = opened(found.images[image]), io.BytesIO()
    if max(opened_image.size) <= PIXEL_ART:
        opened_image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        opened_image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        opened_image.save(buffer, "JPEG", quality=85, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
