"""Reads a run's folder for the report: what was trained, what was measured, what was drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tastemaker.errors import ConfigError
from tastemaker.printing import readable

Record = Mapping[str, Any]
KEPT_ROUND = "early_stop/kept_round"
"""Metric of the evaluations of a run that may stop early: rounds done of the model that it would leave now."""
PHASES = ("sample", "score", "train", "evaluate", "save")


@dataclass(frozen=True)
class SavedImage:
    """One evaluation image. `file` is None where the image itself is gone; `reward` and `correct` where unknown."""

    file: Path | None
    prompt: str
    seed: int
    reward: float | None
    correct: bool | None


@dataclass(frozen=True)
class Checkpoint:
    """The evaluation images of the model after `round` rounds (0: the base model), always in the same order."""

    round: int
    images: tuple[SavedImage, ...]


@dataclass(frozen=True)
class Run:
    """All that a report shows of one run."""

    folder: Path
    config: Mapping[str, Any]
    config_text: str
    env: Mapping[str, Any]
    rounds: tuple[Record, ...]
    """One per finished round, sorted by `round` (1-based)."""
    evaluations: tuple[Record, ...]
    """One per evaluation, sorted by `evaluation` (rounds done, 0 for the base model)."""
    checkpoints: tuple[Checkpoint, ...]
    unseen: tuple[Checkpoint, ...]
    """The same of the prompts that are not trained on."""
    notes: tuple[str, ...]
    """What had to be left out, a sentence each."""

    @property
    def name(self) -> str:
        return readable(self.folder.resolve().name)

    @property
    def kept(self) -> Record | None:
        """The evaluation of the model that early stopping has kept in place of the last one, if it has."""
        return kept_evaluation(self.evaluations)

    @property
    def kept_checkpoint(self) -> Checkpoint | None:
        """Images of the model that the run leaves, or of the last one before it that has images."""
        kept = self.kept
        found = [one for one in self.checkpoints if kept is None or one.round <= kept["evaluation"]]
        return found[-1] if found else None


def read_run(folder: Path) -> Run:
    """The run in `folder`. Raises ConfigError where there is none, or where its metrics cannot be read."""
    rounds, evaluations = _read_metrics(folder)
    config_text = _text(folder / "config.yaml")
    checkpoints, notes = _read_checkpoints(folder / "samples", "round")
    unseen, _ = _read_checkpoints(folder / "samples", "unseen")  # shown nowhere, so that nobody misses any
    return Run(
        folder, _mapping(config_text), config_text, _mapping(_text(folder / "env.json")),
        rounds, evaluations, checkpoints, unseen, notes,
    )  # fmt: skip


def kept_evaluation(evaluations: Sequence[Record]) -> Record | None:
    """The evaluation of the model that early stopping has kept in place of the last one.

    None where the run leaves its last model.
    """
    at = number(evaluations[-1], KEPT_ROUND) if evaluations else None
    return next((record for record in evaluations[:-1] if number(record, "evaluation") == at), None)


def number(record: Record | None, key: str) -> float | None:
    """A finite number from a record, or None where there is none."""
    value = (record or {}).get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond the range of floats
        return None


def series(records: Iterable[Record], x: str, y: str, shift: int = 0) -> tuple[list[float], list[float]]:
    """The points (record[x] + shift, record[y]) of the records that hold both."""
    pairs = [(number(record, x), number(record, y)) for record in records]
    kept = [(a + shift, b) for a, b in pairs if a is not None and b is not None]
    return [a for a, _ in kept], [b for _, b in kept]


def measures(run: Run, under: str) -> list[str]:
    """Names of what was measured under a heading, as `reward/parts/` or `rewards/`, in rounds or evaluations."""
    keys = [key for record in run.rounds for key in record if key.startswith(under)]
    keys += [key[5:] for record in run.evaluations for key in record if key.startswith(f"eval/{under}")]
    return list(dict.fromkeys(key.removeprefix(under) for key in keys))


def base_scale(run: Run) -> tuple[float, float] | None:
    """Mean and standard deviation of the base model's reward, from the two units in which rewards are logged.

    Solves base_stds = (reward - mean) / std through the two records whose rewards lie furthest apart, because a
    record holds both units but not the scale itself. None where there are no two such records.
    """
    points = list(zip(*series(run.rounds, "reward/mean", "reward/base_stds"), strict=True))
    points += zip(*series(run.evaluations, "eval/reward/mean", "eval/reward/base_stds"), strict=True)
    if not points:
        return None
    (low, low_stds), (high, high_stds) = min(points), max(points)
    if high <= low or high_stds <= low_stds:
        return None
    std = (high - low) / (high_stds - low_stds)
    return low - low_stds * std, std


def seconds_by_phase(record: Record) -> dict[str, float]:
    """Seconds of each phase of a round, and of `other` work: what seconds/round holds beyond its phases.

    Evaluating and saving come after the round, so a trainer may or may not count them in seconds/round: they are
    taken to be in it where it leaves room for them, give or take the clock's jitter.
    """
    spent = {phase: number(record, f"seconds/{phase}") or 0.0 for phase in PHASES}
    rest = (number(record, "seconds/round") or 0.0) - spent["sample"] - spent["score"] - spent["train"]
    late = spent["evaluate"] + spent["save"]
    return spent | {"other": max(0.0, rest - late if rest >= 0.9 * late else rest)}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _mapping(text: str) -> Mapping[str, Any]:
    """YAML (and so JSON) that should be a mapping; empty where it is not: the report shows the text all the same."""
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _read_metrics(folder: Path) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise ConfigError(f"{folder} is not a run: it has no metrics.jsonl")
    lines = path.read_bytes().split(b"\n")
    rounds: dict[int, Record] = {}
    evaluations: dict[int, Record] = {}
    for position, line in enumerate(lines, start=1):
        record = _parse(line, f"{path}, line {position}", torn=position == len(lines))
        # A resumed run may log a round again; the later line is the one that its weights come from.
        for key, records in (("round", rounds), ("evaluation", evaluations)):
            at = number(record, key)
            if at is not None:
                records[int(at)] = record
                break
    if not rounds and not evaluations:
        raise ConfigError(f"{path} holds no finished round and no evaluation yet, so there is nothing to report")
    return tuple(rounds[n] for n in sorted(rounds)), tuple(evaluations[n] for n in sorted(evaluations))


def _parse(line: bytes, where: str, torn: bool) -> Record:
    """One line's object. `torn`: the line has no end, as a killed run leaves it, so it may be broken."""
    if not line.strip():
        return {}
    try:
        record = json.loads(line)
    except ValueError as error:
        if torn:
            return {}
        raise ConfigError(f"{where} is not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{where} must be a JSON object, but is {type(record).__name__}")
    return record


def _read_checkpoints(samples: Path, kind: str) -> tuple[tuple[Checkpoint, ...], tuple[str, ...]]:
    """The checkpoints that show the first one's prompts and seeds; and a sentence for each folder left out."""
    checkpoints: list[Checkpoint] = []
    notes: list[str] = []
    for folder in sorted(samples.glob(f"{kind}-*")):
        try:
            checkpoint = _read_checkpoint(folder)
        except (OSError, ValueError, KeyError, TypeError):
            notes.append(f"{folder.name} is left out, because its samples.json is missing or incomplete.")
            continue
        if checkpoints and _keys(checkpoint) != _keys(checkpoints[0]):
            notes.append(f"{folder.name} is left out, because its prompts or seeds differ from the first ones.")
            continue
        checkpoints.append(checkpoint)
    return tuple(sorted(checkpoints, key=lambda checkpoint: checkpoint.round)), tuple(notes)


def _keys(checkpoint: Checkpoint) -> list[tuple[str, int]]:
    return [(image.prompt, image.seed) for image in checkpoint.images]


def _read_checkpoint(folder: Path) -> Checkpoint:
    data = json.loads((folder / "samples.json").read_bytes())
    if not data["samples"]:
        raise ValueError("no samples")
    return Checkpoint(int(data["round"]), tuple(_image(folder, sample) for sample in data["samples"]))


def _image(folder: Path, sample: Record) -> SavedImage:
    file = folder / Path(sample["file"]).name  # the name alone: a report shows nothing from outside its run
    correct = sample.get("correct")
    return SavedImage(
        file=file if file.is_file() else None,
        prompt=str(sample["prompt"]),
        seed=int(sample["seed"]),
        reward=number(sample, "reward"),
        correct=correct if isinstance(correct, bool) else None,
    )
