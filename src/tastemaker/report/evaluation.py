"""The one-file HTML report of an evaluation: what changed, by how much, and on which images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from tastemaker.evaluation.evaluate_models import ModelEvaluation
from tastemaker.evaluation.evaluated_models import EvaluatedModel
from tastemaker.evaluation.evaluation_files import SETTINGS
from tastemaker.evaluation.evaluation_plan import METRICS, PromptSet
from tastemaker.evaluation.evaluation_table import TableRow
from tastemaker.evaluation.evaluation_tables import interval_text
from tastemaker.evaluation.figures import swatch
from tastemaker.evaluation.statistics import Interval
from tastemaker.printing import readable
from tastemaker.report.evaluation_plots import evaluation_plots
from tastemaker.report.grid import PIXEL_ART, data_uri
from tastemaker.report.page import render_page, write_page
from tastemaker.report.text import DASH, tidy_number

MOST_IMAGES = 240
"""Images side by side, over all prompt sets, which bounds the file."""
PAIRS = 8
"""Wins, and losses, that are shown of a model."""
MOST_MODELS = 6
"""Models whose wins and losses are shown."""


@dataclass(frozen=True)
class Cell:
    """A figure as text: the value with its interval, and the difference to the base model with its own."""

    value: str
    difference: str = ""
    in_base_std: str = ""
    clear: str = ""
    """`up` or `down` where the difference's interval does not contain 0."""


@dataclass(frozen=True)
class Line:
    """A row of a table of figures."""

    name: str
    note: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Column:
    """A model as a column."""

    label: str
    swatch: str


@dataclass(frozen=True)
class Shot:
    """An image of one model, with its rewards as text, in the order of the page's rewards."""

    src: str
    texts: tuple[str, ...]
    wrong: bool


@dataclass(frozen=True)
class Row:
    """The images of one prompt and seed, a model each."""

    prompts: str
    prompt: str
    seed: int
    shots: tuple[Shot, ...]


@dataclass(frozen=True)
class Pair:
    """An image of the base model beside that of another one."""

    prompt: str
    before: Shot
    after: Shot


@dataclass(frozen=True)
class Versus:
    """A model against what it is compared with, by one reward."""

    label: str
    reference: str
    reward: str
    rates: tuple[tuple[str, str], ...]
    """Share of won images by prompt set."""
    wins: tuple[Pair, ...]
    losses: tuple[Pair, ...]


def write_evaluation_report(made: ModelEvaluation) -> Path:
    """Writes report.html into the evaluation's folder, and returns its path."""
    return write_page(made.folder.path / "report.html", render(made))


def render(made: ModelEvaluation) -> str:
    """The page. Raises nothing for an image that is gone, in whose place nothing is shown."""
    plan = made.plan
    names = [one.name for one in plan.prompt_sets]
    rewards = _by_training(made)
    rows, numbers = _rows(made, rewards)
    width, height = _size(made)
    columns = [Column(readable(one.label), swatch(index)) for index, one in enumerate(plan.models)]
    return render_page(
        resources.files("tastemaker.report").joinpath("evaluation.html").read_text(encoding="utf-8"),
        title=f"{readable(made.folder.path.resolve().name)} · tastemaker evaluation",
        name=readable(made.folder.path.resolve().name),
        columns=columns,
        names=[readable(name) for name in names],
        sets=[_describe(one) for one in plan.prompt_sets],
        headline=_headline(made),
        generalisation=[_generalisation(made, reward) for reward in rewards if _compared(made)],
        tables=[(_describe(one), _figures(made, one)) for one in plan.prompt_sets],
        mixtures=_mixtures(made, rewards),
        plots=evaluation_plots(made),
        rewards=[readable(reward) for reward in rewards],
        rows=rows,
        numbers=_for_script(made, numbers),
        all_rows=sum(len(one.draw) for one in plan.prompt_sets),
        ratio=f"{width} / {height}",
        pixelated=max(width, height) <= PIXEL_ART,
        judged=any(shot.wrong for row in rows for shot in row.shots),
        versus=_versus(made, rewards),
        settings=(made.folder.path / SETTINGS).read_text(encoding="utf-8").strip(),
        files=[*made.files, "images/"],
        metrics={name: text for name, text in METRICS.items() if made.rows(name)},
    )


def _describe(prompt_set: PromptSet) -> str:
    each = len(prompt_set.draw) // len(prompt_set.prompts)
    return readable(
        f"{prompt_set.name}: {len(prompt_set.prompts)} prompts of {prompt_set.source}, {each} images of each"
    )


def _by_training(made: ModelEvaluation) -> list[str]:
    """The rewards' labels, those first that a model was trained on."""
    trained = {row.metric for row in made.table if row.kind == "trained reward"}
    return sorted(made.plan.reward_labels.values(), key=lambda label: label not in trained)


def _compared(made: ModelEvaluation) -> list[EvaluatedModel]:
    """The models that are compared with another one."""
    return [one for one in made.plan.models if one.reference is not None]


def _headline(made: ModelEvaluation) -> list[str]:
    """A sentence for each model that was trained on a reward."""
    found = []
    for one in _compared(made):
        rows = [row for row in made.table if row.model == one.label and row.kind == "trained reward"]
        rows = [row for row in rows if row.in_base_std is not None]
        for reward in dict.fromkeys(row.metric for row in rows):
            parts = [
                f"{_deviations(row.in_base_std)} on {row.prompts}"
                for row in rows
                if row.metric == reward and row.in_base_std is not None
            ]
            found.append(readable(f"{one.label}, trained on {reward}: {', '.join(parts)}"))
    return found


def _deviations(found: Interval) -> str:
    return _minus(f"{found.estimate:+.2f} [{found.low:+.2f}, {found.high:+.2f}]")


def _cell(row: TableRow | None) -> Cell | None:
    if row is None:
        return None
    value, other, scaled = interval_text(row.value), row.difference, row.in_base_std
    if other is None:
        return Cell(_minus(value))
    clear = "up" if other.low > 0 else "down" if other.high < 0 else ""
    return Cell(
        _minus(value), _minus(interval_text(other, sign=True)),
        "" if scaled is None else f"{_minus(f'{scaled.estimate:+.2f}')} base std", clear,
    )  # fmt: skip


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _generalisation(made: ModelEvaluation, reward: str) -> tuple[str, list[tuple[Column, list[Cell | None]]]]:
    """One reward's figures: models by prompt sets (DDPO §6.3)."""
    rows = made.rows(reward)
    return readable(reward), [
        (
            Column(readable(one.label), swatch(made.plan.models.index(one))),
            [_cell(rows.get((one.label, prompt_set.name))) for prompt_set in made.plan.prompt_sets],
        )
        for one in made.plan.models
    ]


def _figures(made: ModelEvaluation, prompt_set: PromptSet) -> list[Line]:
    """All metrics of one prompt set: metrics by models."""
    lines = []
    for metric in dict.fromkeys(row.metric for row in made.table):
        found = made.rows(metric)
        own = [found.get((one.label, prompt_set.name)) for one in made.plan.models]
        if any(own):
            note = next((row.note for row in own if row is not None and row.note), "")
            lines.append(Line(readable(metric), readable(note), tuple(_cell(row) for row in own)))
    return lines


def _mixtures(made: ModelEvaluation, rewards: Sequence[str]) -> list[tuple[str, str, list[Cell | None], str]]:
    """Mixtures by prompt set: weights, the rewards' figures, and the mean of their differences in base deviations."""
    found = []
    for prompt_set in made.plan.prompt_sets:
        for one in made.plan.models:
            if not one.parts:
                continue
            own = [made.rows(reward).get((one.label, prompt_set.name)) for reward in rewards]
            scaled = [row.in_base_std.estimate for row in own if row is not None and row.in_base_std is not None]
            weights = ", ".join(f"{weight:g} {name}" for name, weight in one.parts)
            average = _minus(f"{np.mean(scaled):+.2f}") if len(scaled) == len(rewards) else DASH
            found.append((readable(prompt_set.name), readable(weights), [_cell(row) for row in own], average))
    return found


def _size(made: ModelEvaluation) -> tuple[int, int]:
    """Width and height in pixels of the first image."""
    first = made.plan.prompt_sets[0]
    height, width = made.folder.read(made.plan.models[0].label, first, [0]).shape[-2:]
    return width, height


def _shot(made: ModelEvaluation, label: str, prompt_set: PromptSet, index: int, rewards: Sequence[str]) -> Shot:
    figures = made.figures[label, prompt_set.name]
    texts = tuple(tidy_number(float(figures.rewards[reward][index])) for reward in rewards)
    source = data_uri(made.folder.path / made.folder.image(label, prompt_set, index)) or ""
    return Shot(source, texts, figures.correct[index] is False)


def _rows(made: ModelEvaluation, rewards: Sequence[str]) -> tuple[list[Row], list[list[list[float]]]]:
    """The images side by side, and for each row the rewards' values by model, for the page's order."""
    plan = made.plan
    share = max(1, MOST_IMAGES // (len(plan.models) * len(plan.prompt_sets)))
    rows, numbers = [], []
    for prompt_set in plan.prompt_sets:
        for index in _telling(made, prompt_set, rewards, share):
            shots = tuple(_shot(made, one.label, prompt_set, index, rewards) for one in plan.models)
            prompt, seed = prompt_set.draw.prompts[index], prompt_set.draw.sample_index[index]
            rows.append(Row(readable(prompt_set.name), readable(prompt), seed, shots))
            values = [made.figures[one.label, prompt_set.name].rewards for one in plan.models]
            numbers.append([[float(own[reward][index]) for own in values] for reward in rewards])
    return rows, numbers


def _for_script(made: ModelEvaluation, numbers: list[list[list[float]]]) -> dict[str, object]:
    """What the page's script sorts by: [rows][rewards][models] values, each model's reference, and the first model that
    has one."""
    labels = [one.label for one in made.plan.models]
    references = [labels.index(one.reference or one.label) for one in made.plan.models]
    first = next((index for index, one in enumerate(made.plan.models) if one.reference is not None), 0)
    return {"numbers": numbers, "references": references, "first": first}


def _telling(made: ModelEvaluation, prompt_set: PromptSet, rewards: Sequence[str], most: int) -> list[int]:
    """At most `most` images: in turn those that changed most, are worst and are best, by every model and reward; those
    first whose first reward changed most."""
    count = len(prompt_set.draw)
    orders = []
    for one in _compared(made) or made.plan.models:
        for reward in rewards:
            own = made.figures[one.label, prompt_set.name].rewards[reward]
            base = own if one.reference is None else made.figures[one.reference, prompt_set.name].rewards[reward]
            orders += [np.argsort(-np.abs(own - base), kind="stable"), np.argsort(own, kind="stable")]
            orders.append(np.argsort(-own, kind="stable"))
    chosen: dict[int, None] = {}
    for place in range(count):
        for order in orders:
            if len(chosen) < most:
                chosen.setdefault(int(order[place]))
    rank = {int(index): place for place, index in enumerate(orders[0])}
    return sorted(chosen, key=lambda index: rank[index])


def _versus(made: ModelEvaluation, rewards: Sequence[str]) -> list[Versus]:
    """The largest gains and losses of each model, by the reward that it was trained on, or else by the first."""
    found = []
    for one in _compared(made)[:MOST_MODELS]:
        own = [made.plan.reward_labels[name] for name in one.trained_on if name in made.plan.reward_labels]
        reward = (own or rewards)[0]
        reference = one.reference or one.label
        differences = []
        for prompt_set in made.plan.prompt_sets:
            after = made.figures[one.label, prompt_set.name].rewards[reward]
            before = made.figures[reference, prompt_set.name].rewards[reward]
            differences += [
                (float(change), prompt_set, index) for index, change in enumerate(after - before) if change != 0
            ]
        differences.sort(key=lambda item: -item[0])

        def pair(item: tuple[float, PromptSet, int], labels=(reference, one.label), reward=reward) -> Pair:
            _, prompt_set, index = item
            before, after = (_shot(made, label, prompt_set, index, [reward]) for label in labels)
            return Pair(readable(prompt_set.draw.prompts[index]), before, after)

        rates = made.rows(f"win rate: {reward}")
        found.append(
            Versus(
                readable(one.label), readable(reference), readable(reward),
                tuple(
                    (readable(prompt_set.name), _percent(rates[one.label, prompt_set.name]))
                    for prompt_set in made.plan.prompt_sets
                ),
                tuple(pair(item) for item in differences if item[0] > 0)[:PAIRS],
                tuple(pair(item) for item in reversed(differences) if item[0] < 0)[:PAIRS],
            )
        )  # fmt: skip
    return found


def _percent(row: TableRow) -> str:
    return f"{row.value.estimate:.0%} [{row.value.low:.0%}, {row.value.high:.0%}]"
