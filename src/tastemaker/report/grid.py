"""The report's before/after grid: which checkpoints the slider stops at, and the images as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tastemaker.report.data import Checkpoint, Run, SavedImage
from tastemaker.report.text import rounds_label, tidy_number

PIXEL_ART = 64  # px; images up to this side are inlined exactly and shown with hard pixel edges
LARGEST, SMALLER = 256, 128  # px; the longer side of an inlined photograph, and where there are more than MANY
MANY = 500  # images on the page, above which it would take seconds to load
MOST_IMAGES = 24  # checkpoints times runs on the slider, which bounds the file; the first and last always stay
_BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


@dataclass(frozen=True)
class Cell:
    """One image: its data URI, the reward under it, and whether the judge says that it misses its prompt."""

    src: str
    text: str
    wrong: bool


@dataclass(frozen=True)
class Group:
    """The images of one prompt by one model, and their mean reward as text."""

    text: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Card:
    """A prompt's row. `rank` is its place when the prompts whose reward changed most come first."""

    prompt: str
    rank: int
    before: Group
    after: tuple[Group, ...]
    """A group a run; empty where there is nothing but the base model yet."""


@dataclass(frozen=True)
class Stop:
    """One place of the slider, with a checkpoint a run."""

    label: str
    round: int
    checkpoints: tuple[Checkpoint, ...]


@dataclass(frozen=True)
class Grid:
    """What the template shows. `frames` has for each stop of the slider the groups of all cards, in order, for JSON."""

    cards: tuple[Card, ...]
    names: tuple[str, ...]
    before: str
    after: str
    shown: int
    """The slider's stop that the page begins with: that of the models that the runs leave."""
    frames: list[dict[str, object]]
    ratio: str
    pixelated: bool
    judged: bool
    across: int
    """Most images of one prompt by one model."""
    notes: tuple[str, ...]


def build_grid(runs: Sequence[Run], names: Sequence[str]) -> Grid | None:
    """The grid of the runs; None where a run has no images, or their prompts or seeds differ."""
    keys = [[(p.prompt, p.seed) for p in run.checkpoints[0].images] if run.checkpoints else [] for run in runs]
    if not keys[0] or any(other != keys[0] for other in keys):
        return None
    every, kept = _stops(runs)
    stops, shown = _thinned(every, kept, max(2, MOST_IMAGES // len(runs)))
    prompts: dict[str, list[int]] = {}
    for index, (prompt, _) in enumerate(keys[0]):
        prompts.setdefault(prompt, []).append(index)
    rows = list(prompts.values())
    side = LARGEST if len(stops) * len(runs) * len(keys[0]) <= MANY else SMALLER
    drawn = [[_groups(checkpoint, rows, side) for checkpoint in stop.checkpoints] for stop in stops]
    images = [image for stop in stops for checkpoint in stop.checkpoints for image in checkpoint.images]
    width, height = image_size(images)
    return Grid(
        cards=_cards(list(prompts), rows, stops, drawn, shown),
        names=tuple(names),
        before=_base_label(stops[0], drawn[0], names),
        after=stops[shown].label,
        shown=shown,
        frames=_frames(stops, drawn, shown),
        ratio=f"{width} / {height}",
        pixelated=max(width, height) <= PIXEL_ART,
        judged=any(image.correct is not None for image in images),
        across=max(len(row) for row in rows),
        notes=(f"The slider shows {len(stops)} of {len(every)} checkpoints.",) if len(stops) < len(every) else (),
    )


def _base_label(stop: Stop, drawn: list[list[Group]], names: Sequence[str]) -> str:
    """Of the still column, which shows the first run's base model: named where the runs' base models differ."""
    same = all(groups == drawn[0] for groups in drawn)
    return stop.label if same else f"{stop.label} of {names[0]}"


def _stops(runs: Sequence[Run]) -> tuple[list[Stop], int]:
    """The checkpoints that all runs share, and those of the models that the runs leave; and where these are."""
    by_round = [{checkpoint.round: checkpoint for checkpoint in run.checkpoints} for run in runs]
    shared = sorted(set.intersection(*(set(checkpoints) for checkpoints in by_round)))
    stops = [Stop(rounds_label(n), n, tuple(checkpoints[n] for checkpoints in by_round)) for n in shared]
    kept = tuple(run.kept_checkpoint or run.checkpoints[0] for run in runs)
    if all(stop.checkpoints != kept for stop in stops):
        stops.append(Stop("at the end", max(checkpoint.round for checkpoint in kept), kept))
    return stops, next(index for index, stop in enumerate(stops) if stop.checkpoints == kept)


def _thinned(stops: list[Stop], shown: int, most: int) -> tuple[list[Stop], int]:
    """At most `most` of them, evenly spread, with the first one and the one that is shown; and where that is then."""
    if len(stops) <= most:
        return stops, shown
    spread = [round(index * (len(stops) - 1) / (most - 1)) for index in range(most)]
    if shown not in spread:
        between = range(1, max(2, most - 1))
        spread[min(between, key=lambda index: abs(spread[index] - shown))] = shown
    return [stops[index] for index in spread], spread.index(shown)


def _cards(
    prompts: list[str], rows: list[list[int]], stops: list[Stop], drawn: list[list[list[Group]]], shown: int
) -> tuple[Card, ...]:
    changes = [
        sum(
            abs((_mean(after, row) or 0) - (_mean(before, row) or 0))
            for before, after in zip(stops[0].checkpoints, stops[shown].checkpoints, strict=True)
        )
        for row in rows
    ]
    order = sorted(range(len(rows)), key=lambda index: -changes[index])
    after = drawn[shown] if len(stops) > 1 else []
    return tuple(
        Card(prompt, order.index(index), drawn[0][0][index], tuple(groups[index] for groups in after))
        for index, prompt in enumerate(prompts)
    )


def _frames(stops: list[Stop], drawn: list[list[list[Group]]], shown: int) -> list[dict[str, object]]:
    """A frame a stop; its groups in the page's order (cards, then runs). The shown one is in the page already."""
    if len(stops) < 2:
        return []
    frames: list[dict[str, object]] = []
    for stop, by_run in zip(stops, drawn, strict=True):
        groups = [groups[index] for index in range(len(by_run[0])) for groups in by_run]
        packed = [{"text": g.text, "cells": [[c.src, c.text, c.wrong] for c in g.cells]} for g in groups]
        frames.append({"label": stop.label, "round": stop.round, "groups": None if stop is stops[shown] else packed})
    return frames


def _groups(checkpoint: Checkpoint, rows: list[list[int]], side: int) -> list[Group]:
    cells = [_cell(image, side) for image in checkpoint.images]
    return [Group(tidy_number(_mean(checkpoint, row)), tuple(cells[index] for index in row)) for row in rows]


def _mean(checkpoint: Checkpoint, row: list[int]) -> float | None:
    rewards = [reward for reward in (checkpoint.images[index].reward for index in row) if reward is not None]
    return sum(rewards) / len(rewards) if rewards else None


def _cell(image: SavedImage, side: int) -> Cell:
    src = data_uri(image.file, side) if image.file else None
    return Cell(src or _BLANK, tidy_number(image.reward) if src else "missing", image.correct is False)


def data_uri(file: Path, side: int = LARGEST) -> str | None:
    """The image for an <img>: pixel art as PNG, exactly; larger ones as JPEG, shrunk to `side` pixels.

    None where it is damaged.
    """
    buffer = io.BytesIO()
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except Exception:  # Pillow's decoders raise anything for damaged files
        return None
    kind = "png" if max(image.size) <= PIXEL_ART else "jpeg"
    if kind == "jpeg":
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=85, optimize=True)
    else:
        image.save(buffer, "PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_size(images: Sequence[SavedImage]) -> tuple[int, int]:
    """Width and height in pixels of the first image that can be opened."""
    for image in images:
        try:
            if image.file:
                with Image.open(image.file) as opened_image:
                    return opened_image.size
        except Exception:
            continue
    return 1, 1
