"""The one-file HTML report over all iterations: labels, reward models, what was reached, and the images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tastemaker.evaluation.figures import Plot, curve, finish, look, panels, share_axis, styled, swatch
from tastemaker.iteration.lineage import Record
from tastemaker.iteration.settings import IterationSettings
from tastemaker.report.data import Checkpoint, Run, measures, number, read_run, series
from tastemaker.report.grid import PIXEL_ART, data_uri, image_size
from tastemaker.report.page import render_page, write_page
from tastemaker.report.text import algorithm_name, percent_number, tidy_number

PROMPTS = 12
"""Prompts shown."""
EACH = 4
"""Images of each by each model."""
CORRECT = "eval/judge/correct"
"""The share of images that show their prompt."""


@dataclass(frozen=True)
class Row:
    """One iteration in the table."""

    number: int
    images_of: str
    tasks: str
    pairs: str
    accuracy: str
    figures: tuple[str, ...]
    """What was measured before and after the alignment, in the order of the table's heads."""
    links: tuple[tuple[str, str], ...]
    """Texts and relative addresses of the reports of its steps."""


@dataclass(frozen=True)
class Card:
    """A prompt with the images of each model."""

    prompt: str
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    """The model's name, and its images as data URIs."""


def write_report(out: Path, settings: IterationSettings, records: Sequence[Record]) -> Path:
    """Writes out/report.html from the iterations whose alignment has ended."""
    done = [record for record in records if record.run is not None]
    runs = [read_run(out / str(record.run)) for record in done]
    names = measured(runs)
    cards, size = shown_images(runs)
    source = resources.files("tastemaker.iteration").joinpath("report.html").read_text(encoding="utf-8")
    page = render_page(
        source, title=f"{out.name} · tastemaker", name=str(out), model=settings.train.model,
        algorithm=algorithm_name(settings.train.algorithm.name), heads=[head for _, head in names],
        rows=[_row(out, record, run, names) for record, run in zip(done, runs, strict=True)],
        plots=plots(runs, done, settings.loop.policy == "previous"), cards=cards,
        swatches=[swatch(index) for index in range(len(runs))],
        ratio=f"{size[0]} / {size[1]}", pixelated=max(size) <= PIXEL_ART, across=EACH,
        lineage=[_lineage(record) for record in done],
    )  # fmt: skip
    return write_page(out / "report.html", page)


def measured(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Metrics of evaluations that all runs have, with what the page calls them; the reward model's is not comparable.

    Each iteration has a reward model of its own, so that its rewards have another scale.
    """
    if not runs:
        return []
    common = [name for name in measures(runs[0], "rewards/") if all(name in measures(run, "rewards/") for run in runs)]
    found = [(f"eval/rewards/{name}", name) for name in common]
    found += [(f"eval/unseen/rewards/{name}", f"{name}, unseen prompts") for name in common]
    found += [(CORRECT, "shows the prompt"), ("eval/diversity", "diversity")]
    return [
        (key, head)
        for key, head in found
        if all(any(number(one, key) is not None for one in run.evaluations) for run in runs)
    ]


def _row(out: Path, record: Record, run: Run, names: Sequence[tuple[str, str]]) -> Row:
    accuracy = record.accuracy
    links = [("run", f"{record.run}/report.html")]
    if record.reward_model is not None:
        links.insert(0, ("reward model", f"{record.reward_model}/report.html"))
    return Row(
        record.number, _images_of(record),
        f"{record.tasks:,}", f"{record.pairs:,}",
        "" if not accuracy else
        f"{accuracy['value']:.1%} ({accuracy['low']:.1%} to {accuracy['high']:.1%})",
        tuple(_before_after(run, key) for key, _ in names),
        tuple((text, address) for text, address in links if (out / address).is_file()),
    )  # fmt: skip


def _images_of(record: Record) -> str:
    if record.policy is None:
        return "base model"
    newest = record.number - 1
    if not record.mixed or newest == 1:
        return f"iteration {newest}" + (", base model" if record.mixed else "")
    return f"iterations 1 {'and' if newest == 2 else 'to'} {newest}, base model"


def _before_after(run: Run, key: str) -> str:
    values = [value for one in run.evaluations if (value := number(one, key)) is not None]
    best, kept = max(values), number(run.kept, key)
    left = values[-1] if kept is None else kept
    text = percent_number if key == CORRECT else tidy_number
    ends = f"{text(values[0])}\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}{text(left)}"
    return ends if best <= max(values[0], left) else f"{ends} (at most {text(best)})"


def _made_by(record: Record) -> str:
    if record.policy is None:
        return "the base model"
    newest = f"{record.policy} ({str(record.policy_sha256)[:12]})"
    if not record.mixed:
        return newest
    return f"{newest}{', the policies before it' if record.number > 2 else ''} and the base model"


def _lineage(record: Record) -> list[tuple[str, str]]:
    rows = [
        ("images by", _made_by(record)),
        ("labels", f"{record.labels} ({str(record.labels_sha256)[:12]})"),
    ]
    learned = f"on {', '.join(digest[:12] for digest in record.learned_from)}"
    policy = f"{record.run} ({str(record.run_sha256)[:12]})"
    if record.reward_model is None:
        return [*rows, ("policy", f"{policy} {learned}")]
    reward_model = f"{record.reward_model} ({str(record.reward_model_sha256)[:12]}) {learned}"
    return [*rows, ("reward model", reward_model), ("policy", policy)]


def plots(runs: Sequence[Run], records: Sequence[Record], one_policy: bool = False) -> list[Plot]:
    """What was measured by round, a curve for each iteration; and the reward models' own rewards.

    `one_policy` says that each alignment goes on from the one before, so that its curve begins where that ended.
    """
    if not runs:
        return []
    starts = [0] * len(runs)
    if one_policy:
        starts = list(itertools.accumulate((_rounds_left(run) for run in runs[:-1]), initial=0))
    with styled():
        caption = (
            "A measure that no alignment learns from, by round. Where it turns while the learned reward still rises, "
            "the policy exploits that reward."
        )
        made = [_plot(runs, records, starts, key, head, caption) for key, head in measured(runs)]
        if records[0].reward_model is not None:
            caption = "The reward that each alignment learns from, by the reward model of its own iteration."
            name = "learned reward, in base standard deviations"
            made.insert(0, _plot(runs, records, starts, "eval/reward/base_stds", name, caption))
    return [plot for plot in made if plot is not None]


def _rounds_left(run: Run) -> int:
    """Rounds done of the model that the run leaves."""
    return int(run.rounds[-1]["round"] if run.kept is None else run.kept["evaluation"])


def _plot(
    runs: Sequence[Run], records: Sequence[Record], starts: Sequence[int], key: str, head: str, caption: str
) -> Plot | None:
    figure, (axis,) = panels()
    drawn = False
    for index, (run, record, start) in enumerate(zip(runs, records, starts, strict=True)):
        x, y = series(run.evaluations, "evaluation", key, shift=start)
        if x:
            one = look(index)
            curve(axis, x, y, one.line, f"iteration {record.number}", one.dashes)
            drawn = True
    if not drawn:
        return None
    if key == CORRECT:
        share_axis(axis, "images")
    else:
        axis.set_ylabel("standard deviations" if "deviations" in head else head.partition(",")[0])
    title = head if ":" in head else head[:1].upper() + head[1:]
    return finish(figure, [axis], "rounds", title, caption)


def shown_images(runs: Sequence[Run]) -> tuple[list[Card], tuple[int, int]]:
    """The same prompts and seeds by the base model and after each iteration; with the size of an image."""
    checkpoints: list[tuple[str, Checkpoint]] = []
    if runs and runs[0].checkpoints:
        checkpoints.append(("before", runs[0].checkpoints[0]))
    for index, run in enumerate(runs):
        if len(run.checkpoints) > 1 and (kept := run.kept_checkpoint) is not None:
            checkpoints.append((f"iteration {index + 1}", kept))
    prompts = list(dict.fromkeys(image.prompt for _, one in checkpoints for image in one.images))[:PROMPTS]
    cards = []
    for prompt in prompts:
        groups = []
        for name, one in checkpoints:
            files = [image.file for image in one.images if image.prompt == prompt and image.file is not None]
            groups.append((name, tuple(uri for file in files[:EACH] if (uri := data_uri(file)) is not None)))
        cards.append(Card(prompt, tuple(groups)))
    return cards, image_size([image for _, one in checkpoints for image in one.images])
