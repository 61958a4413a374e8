"""Copies of a run's metrics and evaluations' images and tables in TensorBoard, Weights & Biases and trackio.

metrics.jsonl is the record. A tracker that cannot be used is refused before anything is computed; one that fails later
is left out with a note, and training goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image

from tastemaker.config.schema import Config
from tastemaker.config.yaml_file import dump_config, plain
from tastemaker.errors import ConfigError, TastemakerError, nearest
from tastemaker.evaluation.images import contact_sheet
from tastemaker.runs import atomic

PROJECT = "tastemaker"
"""Name of the project, for those trackers that have projects and are not told another by their own variables."""
STATE = "trackers.json"
"""File of a run's folder with what each tracker calls the run, by which a resumed run goes on in the same one."""


@dataclass(frozen=True)
class Images:
    """The images of an evaluation, all of one size."""

    images: Sequence[Image.Image]
    captions: Sequence[str]
    columns: int
    """Images of each prompt, which stand side by side."""

    def sheet(self) -> Image.Image:
        """All in one image, a row for each prompt."""
        return contact_sheet(self.images, self.columns)


@dataclass(frozen=True)
class Table:
    """What was measured on single images: a row for each."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | bool | None]]

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells)


@dataclass(frozen=True)
class Kind:
    """What one tracker does otherwise than the others. `Any` is accelerate's tracker of that kind."""

    start: Callable[[Config, Path, str | None, int], Any]
    """Of config, run folder, the tracker's own name for the run where it goes on, and the first round to come."""
    log_images: Callable[[Any, str, Images, int], None]
    log_table: Callable[[Any, str, Table, int], None]
    finish: Callable[[Any, int], None] = lambda tracker, exit_code: tracker.finish()
    identity: Callable[[Any], str | None] = lambda tracker: None
    """By what a resumed run finds its copy again."""
    first_step: Callable[[Any], int] = lambda tracker: 0
    """The lowest step that is still taken."""
    started: Callable[[], bool] = lambda: False
    """Whether the program around this one has started a run, into which everything then goes."""
    local: bool = False
    """Whether it writes into the run's folder, and so can start only when that is there."""


def _start_tensorboard(config: Config, folder: Path, saved: str | None, first: int) -> TensorBoardTracker:
    # Rounds that a resumed run makes again take the place of those that were logged.
    options = {"purge_step": first} if first else {}
    tracker = TensorBoardTracker(PROJECT, folder / "trackers", **options)
    tracker.start()
    if not first:
        # Indented, which is Markdown for text as it is. accelerate's own way makes a second run for the settings.
        settings = "\n".join(f"    {line}" for line in dump_config(config).splitlines())
        tracker.log({"config": settings}, step=0)
    return tracker


def _start_wandb(config: Config, folder: Path, saved: str | None, first: int) -> WandBTracker:
    options: dict[str, Any] = {"config": plain(config)}
    if "WANDB_NAME" not in os.environ:
        options["name"] = folder.name
    if saved is not None:
        options |= {"id": saved, "resume": "allow"}
    tracker = WandBTracker(os.environ.get("WANDB_PROJECT") or PROJECT, **options)
    tracker.start()
    return tracker


def _start_trackio(config: Config, folder: Path, saved: str | None, first: int) -> TrackioTracker:
    # It knows runs by their names, and two folders may have the same.
    name = saved or f"{folder.name}-{os.urandom(4).hex()}"
    project = os.environ.get("TRACKIO_PROJECT") or PROJECT
    tracker = TrackioTracker(project, name=name, resume="allow", config=plain(config))
    tracker.start()
    return tracker


def _wandb_started() -> bool:
    import wandb

    return wandb.run is not None


def _to_tensorboard(tracker: TensorBoardTracker, name: str, shown: Images, step: int) -> None:
    tracker.log_images({name: numpy.asarray(shown.sheet())[None]}, step, dataformats="NHWC")  # pyright: ignore


def _to_wandb(tracker: WandBTracker, name: str, shown: Images, step: int) -> None:
    import wandb

    pairs = zip(shown.images, shown.captions, strict=True)
    tracker.log({name: [wandb.Image(image, caption=caption) for image, caption in pairs]}, step)


def _to_trackio(tracker: TrackioTracker, name: str, shown: Images, step: int) -> None:
    import trackio  # pyright: ignore[reportMissingImports]

    tracker.log({name: trackio.Image(shown.sheet(), caption=" | ".join(dict.fromkeys(shown.captions)))}, step)


def _table_to_tensorboard(tracker: TensorBoardTracker, name: str, table: Table, step: int) -> None:
    tracker.log({name: table.markdown()}, step)


def _table_to_wandb(tracker: WandBTracker, name: str, table: Table, step: int) -> None:
    tracker.log_table(name, columns=list(table.columns), data=[list(row) for row in table.rows], step=step)


def _table_to_trackio(tracker: TrackioTracker, name: str, table: Table, step: int) -> None:
    import pandas  # pyright: ignore[reportMissingImports]
    import trackio  # pyright: ignore[reportMissingImports]

    frame = pandas.DataFrame([list(row) for row in table.rows], columns=list(table.columns))
    tracker.log({name: trackio.Table(dataframe=frame)}, step)


KINDS = {
    "tensorboard": Kind(_start_tensorboard, _to_tensorboard, _table_to_tensorboard, local=True),
    "wandb": Kind(
        _start_wandb,
        _to_wandb,
        _table_to_wandb,
        finish=lambda tracker, exit_code: tracker.tracker.finish(exit_code=exit_code),
        identity=lambda tracker: tracker.tracker.id,
        first_step=lambda tracker: tracker.tracker.step,
        started=_wandb_started,
    ),
    "trackio": Kind(_start_trackio, _to_trackio, _table_to_trackio, identity=lambda tracker: tracker.tracker.name),
}


@dataclass
class Trackers:
    """The trackers of a run on its main process, by name. Without any, all methods do nothing."""

    active: dict[str, Any] = field(default_factory=dict)
    notify: Callable[[str], None] = print
    borrowed: dict[str, int] = field(default_factory=dict)
    """Those whose run is the caller's, who also ends it, with the step at which it was; rounds are counted from there.
    """

    def log(self, values: Mapping[str, Any], step: int, *, late: bool = False) -> None:
        """Metrics by name, of a round; the base model's is 0. Steps must not go back.

        `late` ones belong to a round that was logged before the run was stopped: Weights & Biases takes nothing more
        for the last step of a run that it resumes, so that they go to the next one there.
        """
        self._each("metrics", step, late, lambda kind, one, at: one.log(dict(values), step=at))

    def log_images(self, name: str, shown: Images, step: int, *, late: bool = False) -> None:
        """Images with captions; where a tracker has no captions, as one grid."""
        self._each("images", step, late, lambda kind, one, at: kind.log_images(one, name, shown, at))

    def log_table(self, name: str, table: Table, step: int, *, late: bool = False) -> None:
        """A table; where a tracker has none, as text."""
        self._each("a table", step, late, lambda kind, one, at: kind.log_table(one, name, table, at))

    def start_local(self, config: Config, folder: Path, first: int) -> None:
        """Starts those that write into the run's folder, and notes there how to find the copies of the others.

        `first` is the first round that will be logged.
        """
        own = {name: KINDS[name].identity(one) for name, one in self.active.items() if name not in self.borrowed}
        found = {name: identity for name, identity in own.items() if identity is not None}
        if found:
            atomic.replace_atomic(folder / STATE, (json.dumps(_saved(folder) | found, indent=1) + "\n").encode())
        for name in dict.fromkeys(config.trackers):
            if KINDS[name].local:
                self._attempt(name, "start", lambda: self._start(name, config, folder, first))  # noqa: B023

    def finish(self, exit_code: int) -> None:
        """Ends them; Weights & Biases shows a run with an exit code that is not 0 as failed."""
        for name, one in list(self.active.items()):
            if name not in self.borrowed:
                self._attempt(name, "end", lambda: KINDS[name].finish(one, exit_code))  # noqa: B023
        self.active.clear()

    def _start(self, name: str, config: Config, folder: Path, first: int) -> None:
        kind = KINDS[name]
        borrowed = kind.started()
        self.active[name] = kind.start(config, folder, _saved(folder).get(name), first)
        if borrowed:
            self.borrowed[name] = kind.first_step(self.active[name])

    def _each(self, what: str, step: int, late: bool, send: Callable[[Kind, Any, int], None]) -> None:
        for name, one in list(self.active.items()):
            self._attempt(name, what, lambda: send(KINDS[name], one, self._step(name, step, late)))  # noqa: B023

    def _step(self, name: str, step: int, late: bool) -> int:
        step += self.borrowed.get(name, 0)
        return max(step, KINDS[name].first_step(self.active[name])) if late else step

    def _attempt(self, name: str, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # of a tracker's own library, of a network or a disk: none of them may end a run
            self.active.pop(name, None)
            self.notify(f"the tracker {name} failed ({what}: {_reason(error)}) and gets nothing more of this run")


def check_trackers(names: Sequence[str], *, main: bool) -> None:
    """Raises ConfigError where a tracker is unknown or not installed, or where W&B has no account to send to.

    The last is asked on the `main` process only. In a terminal, W&B asks for the API key itself.
    """
    if isinstance(names, str):
        raise ConfigError(f"trackers is {names!r}, expected a list such as ({names!r},)")
    for name in names:
        if name not in KINDS:
            raise ConfigError(f"trackers has {name!r}; {nearest(name, list(KINDS))}")
        # A folder of that name, which W&B itself makes where it is used, is a specification without an origin.
        if (found := find_spec(name)) is None or found.origin is None:
            raise ConfigError(
                f"trackers has {name!r}, but {name} is not installed: `pip install {name}`, or leave it out"
            )
    if "wandb" in names and main:
        _log_in()


@contextmanager
def tracking(
    config: Config, folder: Path, *, first: int, main: bool, notify: Callable[[str], None] = print
) -> Iterator[Trackers]:
    """A run's trackers, started on the `main` process and ended with the block.

    `folder` need not be there yet: what writes into it is started by `start_local`. `first` is the first round that
    will be logged; where it is not 0, the trackers go on with the run of which `folder` says that it is theirs. Raises
    ConfigError where one cannot be started.
    """
    trackers = Trackers(notify=notify)
    try:
        for name in dict.fromkeys(config.trackers) if main else ():
            if not KINDS[name].local:
                try:
                    trackers._start(name, config, folder, first)
                except Exception as error:  # whatever a tracker's own library raises
                    raise _refused(name, error) from error
        yield trackers
    except BaseException as error:
        trackers.finish(error.exit_code if isinstance(error, TastemakerError) else 1)
        raise
    trackers.finish(0)


def _log_in() -> None:
    """Raises ConfigError where Weights & Biases would send a run, and has no account or cannot be reached."""
    try:
        import wandb

        if wandb.run is None and wandb.setup().settings.mode not in ("offline", "dryrun", "disabled"):
            wandb.login(verify=True)
    except Exception as error:  # its own errors, pydantic's for a variable's value, and those of a network
        raise _refused("wandb", error) from error


def _refused(name: str, error: Exception) -> ConfigError:
    fix = {
        "wandb": "log in by `wandb login` or with WANDB_API_KEY, or set WANDB_MODE=offline to keep the data here",
        "trackio": "fix that, or leave it out of trackers",
    }[name]
    return ConfigError(f"the tracker {name} cannot be used ({_reason(error)}): {fix}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _saved(folder: Path) -> dict[str, str]:
    """What the trackers called the run that `folder` holds; nothing where it says nothing that can be read."""
    try:
        found = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}
