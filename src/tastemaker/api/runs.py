"""A finished or stopped run, read from its folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tastemaker.cli.folders import require_run
from tastemaker.config.schema import Config
from tastemaker.config.yaml_file import load_config
from tastemaker.errors import ConfigError
from tastemaker.report.data import kept_evaluation
from tastemaker.runs.metrics import read_metrics

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class RunImage:
    """An image of an evaluation, with what was measured on it."""

    image: Image.Image
    prompt: str
    seed: int
    """Which of its prompt's images it is, from 0."""
    reward: float
    correct: bool | None
    """Whether it shows its prompt, by the bundled model's judge; None where that cannot say."""


@dataclass(frozen=True)
class Run:
    """A run's folder, read anew at each call."""

    folder: Path

    @property
    def config(self) -> Config:
        """The settings. Raises ConfigError where config.yaml cannot be read."""
        return load_config(self.folder / "config.yaml", Config())

    @property
    def adapter(self) -> Path:
        """The folder of what was trained: a LoRA for `load_lora_weights`, or a folder with the whole U-Net.

        Raises ConfigError where the run has not ended, and has only checkpoints.
        """
        found = self.folder / ("adapter" if self.config.tuning.mode == "lora" else "model")
        if not found.is_dir():
            raise ConfigError(f"{self.folder} has no {found.name} yet: go on with it by tastemaker.resume")
        return found

    @property
    def best(self) -> Path:
        """The folder of the best model so far, which can be loaded as `adapter` can; best.json in it has its round.

        Raises ConfigError where the run does not keep it (`over_optimisation.keep_best`).
        """
        found = self.folder / "best"
        if not found.is_dir():
            raise ConfigError(f"{self.folder} has no best model: train with over_optimisation.keep_best=reward/mean")
        return found

    @property
    def report(self) -> Path:
        """Path of report.html, which is there once the run has ended."""
        return self.folder / "report.html"

    def metrics(self) -> list[dict[str, Any]]:
        """The record of each round, in order, as in metrics.jsonl: `round`, `reward/mean`, `loss`, ..."""
        return [record for record in self._records() if "round" in record]

    def evaluations(self) -> list[dict[str, Any]]:
        """The record of each evaluation, in order: `evaluation` (the round after which it was), `eval/reward/mean`, ...

        The first, of round 0, is the base model's.
        """
        return [record for record in self._records() if "evaluation" in record]

    def table(self) -> pandas.DataFrame:
        """The rounds' records as a table with a row for each round. Raises ImportError without pandas."""
        import pandas

        return pandas.DataFrame(self.metrics())

    def images(self, round: int | None = None) -> list[RunImage]:
        """The images of the evaluation after a round, 0 for the base model's.

        None: of the model that the run leaves. The same prompts and seeds at every evaluation. Raises ConfigError where
        there was no evaluation after `round`.
        """
        grids = {
            int(match[1]): path
            for path in sorted((self.folder / "samples").glob("round-*"))
            if (match := re.fullmatch(r"round-(\d+)", path.name))
        }
        kept = kept_evaluation(self.evaluations())  # with early stopping it may be an earlier one than the last
        left = max(grids, default=None) if kept is None else int(kept["evaluation"])
        chosen = left if round is None else round
        if chosen is None or chosen not in grids:
            known = ", ".join(map(str, sorted(grids))) or "none"
            raise ConfigError(f"{self.folder} has no images of round {chosen}; rounds with images: {known}")
        folder = grids[chosen]
        found = []
        for entry in json.loads((folder / "samples.json").read_text(encoding="utf-8"))["samples"]:
            with Image.open(folder / entry["file"]) as image:
                image.load()
            found.append(RunImage(image, entry["prompt"], entry["seed"], entry["reward"], entry["correct"]))
        return found

    def _records(self) -> list[dict[str, Any]]:
        return read_metrics(self.folder / "metrics.jsonl")


def load_run(folder: str | Path) -> Run:
    """The run in a folder. Raises ConfigError where no run has been started there."""
    return Run(require_run(Path(folder)))
