"""`tm.iterate`: sampling, labelling, reward model and alignment in turn, as `tastemaker iterate` does it."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tastemaker.api.runs import Run, load_run
from tastemaker.cli.folders import next_free
from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError, nearest
from tastemaker.iteration import iterate as steps
from tastemaker.iteration import lineage
from tastemaker.iteration.lineage import Record
from tastemaker.iteration.settings import REWARD_MODEL, IterationSettings, Loop, Waiting


@dataclass(frozen=True)
class Iterations:
    """What iterations left."""

    folder: Path
    """With iterate.yaml, lineage.json, report.html, and iteration-1, iteration-2, ..."""
    records: tuple[Record, ...]
    """What came from what, one of each iteration."""

    @property
    def runs(self) -> list[Run]:
        """The alignments that have ended."""
        return [load_run(self.folder / record.run) for record in self.records if record.run is not None]


def iterate(
    config: Config | None = None,
    out: str | Path | None = None,
    *,
    resume: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    accept_unfinished: bool = False,
    launcher: str | None = None,
    **loop: Any,
) -> Iterations:
    """Samples images, has them labelled, trains a reward model, aligns the model with it, and begins again.

    - `config`: of each alignment, with the word REWARD_MODEL in `reward` for the reward model of the iteration; where
      it has none, the reward is the reward model.
    - `out`: the next free runs/iterate-<n> where it is None.
    - `resume`: the folder of iterations that were stopped, in place of `config`; only `iterations` may be given then.
    - `host`, `port`, `accept_unfinished`, `launcher`: as the flags of `tastemaker iterate`.
    - `loop`: fields of `iteration.settings.Loop`, such as `iterations=2, tasks=60, simulate=True`.

    Prints what the command prints, the address at which people label among it, and waits for them. Raises a
    TastemakerError; what is done by then stays, and `resume` goes on.
    """
    command = f"tastemaker.iterate(...) in {sys.argv[0] or 'Python'}"
    waiting = Waiting(host, port, accept_unfinished)
    if resume is not None:
        if config is not None or set(loop) - {"iterations"}:
            raise ConfigError("iterations that are gone on with have their settings: give resume and iterations alone")
        folder = steps.go_on(Path(resume), loop.get("iterations"), command=command, waiting=waiting, launcher=launcher)
        return Iterations(folder, tuple(lineage.read(folder)))
    if config is None:
        raise ConfigError("give the settings of the alignment, such as tm.preset('ppo-compressibility')")
    known = [field.name for field in dataclasses.fields(Loop)]
    for name in loop:
        if name not in known:
            raise ConfigError(f"unknown setting {name!r} of iterations; {nearest(name, known)}")
    if REWARD_MODEL not in config.reward:
        config = replace(config, reward=REWARD_MODEL)
    folder = Path(out) if out is not None else next_free("iterate")
    settings = IterationSettings(Loop(**loop), config)
    steps.start(settings, folder, command=command, waiting=waiting, launcher=launcher)
    return Iterations(folder, tuple(lineage.read(folder)))
