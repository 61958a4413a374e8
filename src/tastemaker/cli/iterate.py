"""`tastemaker iterate`: sample, label, reward model, alignment, and again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from tastemaker.cli.arguments import parse
from tastemaker.cli.folders import next_free
from tastemaker.cli.settings import read
from tastemaker.config.presets import PRESETS
from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError, TastemakerError
from tastemaker.iteration.settings import REWARD_MODEL, IterationSettings, Loop, Waiting
from tastemaker.printing import print_lines
from tastemaker.process_count import process_count
from tastemaker.web.hosts import check_port


@dataclass(frozen=True)
class IterateOptions:
    """Goes round from images to people's labels, a reward model and a model that is aligned with it, and begins again.

    Beside these options it takes all settings of `tastemaker train`, for the alignment, with the word REWARD_MODEL for
    the reward model of the iteration (docs/guides/iterate.md, and `tastemaker train --help`).
    """

    preset: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[PRESET]", help_behavior_hint="")] = None
    """Of the alignment: a name from `tastemaker ls presets`."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A YAML file instead of a preset; it may name a preset by `preset: NAME`."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/iterate-<n>)")] = None
    """Folder of all iterations."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Go on with the iterations in this folder; of the settings only --iterations may be given."""
    waiting: Annotated[Waiting, tyro.conf.arg(name="")] = field(default_factory=Waiting)
    launcher: Annotated[str | None, tyro.conf.arg(metavar="COMMAND", help_behavior_hint="")] = None
    """Starts the alignment on several processes, such as 'accelerate launch --num_processes 8'; one does all else."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything and print what would be done, without doing it."""
    loop: Annotated[Loop, tyro.conf.arg(name="")] = field(default_factory=Loop)


@dataclass(frozen=True)
class IterateArgs:
    """The options, and the settings of the alignment."""

    options: Annotated[IterateOptions, tyro.conf.arg(name="")] = field(default_factory=IterateOptions)
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)

    @property
    def preset(self) -> str | None:
        return self.options.preset


def run(argv: list[str]) -> int:
    """Runs the command."""
    if process_count() > 1:
        raise ConfigError(
            "iterate runs in one process and starts the alignment on several: start it alone, and give the launcher "
            "as in --launcher 'accelerate launch --num_processes 8'"
        )
    command = shlex.join(["tastemaker", "iterate", *argv])
    resumed = any(word == "--resume" or word.startswith("--resume=") for word in argv)
    if resumed:
        return _go_on(argv, command)
    if "--help" in argv or "-h" in argv:
        parse(IterateOptions, ["--help"], "iterate")
    given, stem = read(IterateArgs, argv, "iterate")
    args = given.options
    settings = IterationSettings(args.loop, _with_reward_model(given.settings, stem))
    check_port(args.waiting.port)
    out = args.out or next_free("iterate")
    if (out / "iterate.yaml").exists():
        raise ConfigError(f"{out} has iterations already: go on with them by `tastemaker iterate --resume {out}`")
    if args.dry_run:
        return _dry_run(settings, out, args.launcher)
    from tastemaker.iteration.iterate import start

    with _says_how_to_go_on(out):
        start(
            settings, out, command=command, waiting=args.waiting, launcher=args.launcher, log=partial(print, flush=True)
        )
    return 0


@contextmanager
def _says_how_to_go_on(out: Path) -> Iterator[None]:
    """Where the block ends early, by Ctrl-C or an error, the command that goes on is printed."""
    try:
        yield
    except (TastemakerError, KeyboardInterrupt):
        if (out / "iterate.yaml").is_file():
            print(f"what is done stays; go on by: tastemaker iterate --resume {out}", flush=True)
        raise


def _with_reward_model(config: Config, stem: str) -> Config:
    """The settings with the reward model as the reward, where that is still the preset's own."""
    preset = PRESETS.get(stem)
    own = Config().reward if preset is None else preset.config.reward
    return replace(config, reward=REWARD_MODEL) if config.reward == own else config


def _go_on(argv: list[str], command: str) -> int:
    args = parse(ResumeArgs, argv, "iterate")
    assert args.resume is not None
    check_port(args.waiting.port)
    from tastemaker.iteration.iterate import go_on, load_settings

    if args.dry_run:
        return _dry_run(load_settings(args.resume), args.resume, args.launcher)
    with _says_how_to_go_on(args.resume):
        go_on(
            args.resume, args.iterations, command=command, waiting=args.waiting, launcher=args.launcher,
            log=partial(print, flush=True),
        )  # fmt: skip
    return 0


@dataclass(frozen=True)
class ResumeArgs:
    """Goes on with iterations that were stopped."""

    resume: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Their folder."""
    iterations: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: their own)")] = None
    """New total number of iterations, those already done included."""
    waiting: Annotated[Waiting, tyro.conf.arg(name="")] = field(default_factory=Waiting)
    launcher: Annotated[str | None, tyro.conf.arg(metavar="COMMAND", help_behavior_hint="")] = None
    """Starts the alignment on several processes, such as 'accelerate launch --num_processes 8'; one does all else."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything and print what would be done, without doing it."""


def _images_of(loop: Loop) -> str:
    if loop.iterations == 1:
        return ""
    newest = "; later ones of the newest policy"
    return f"{newest}, those before it and the base model" if loop.images == "mixed" else f"{newest} alone"


def _dry_run(settings: IterationSettings, out: Path, launcher: str | None) -> int:
    """Checks everything but the reward model, which is not there yet, and prints the plan."""
    from tastemaker.iteration.iterate import check_launcher, check_settings
    from tastemaker.iteration.launching import launcher_words

    launched_by = launcher_words(launcher)
    prompts, loop, config = check_settings(settings), settings.loop, settings.train
    processes = check_launcher(settings, launched_by)
    where = f", by {shlex.join(launched_by)} on {processes} process{'es' * (processes > 1)}" if launched_by else ""
    who = f"{loop.simulated.count} simulated labelers" if loop.simulate else "people in their browsers"
    images = loop.tasks * loop.label.task_size
    kind = settings.architecture.described
    print_lines(
        f"{loop.iterations} iterations into {out}, each:",
        f"  {loop.tasks} tasks of {loop.label.task_size} images ({images:,} images of {config.model}, "
        f"{prompts:,} prompts{_images_of(loop)}), mode {loop.label.mode}, labelled by {who}",
        f"  a reward model of kind {kind} on {'all labels so far' if loop.labels == 'all' else 'the newest labels'}"
        if settings.learns_a_reward
        else "  no reward model: the algorithm learns from the labels themselves",
        f"  {config.rounds} rounds of {config.algorithm.name} from "
        f"{'the base model' if loop.policy == 'base' else 'the adapter of the iteration before'}, "
        f"{config.sampling.samples:,} images a round{where}",
    )
    return 0
