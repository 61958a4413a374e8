"""`tastemaker compare create`: a blind comparison of two or three models, as a labelling project."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from tastemaker.cli.arguments import parse
from tastemaker.cli.compared_models import base_settings, candidates, recognised
from tastemaker.cli.folders import require_unused
from tastemaker.cli.progress import images_progress
from tastemaker.cli.sampling import SamplingFlags, chosen_sampling, given_flags, require_at_least
from tastemaker.cli.text import as_source, as_text
from tastemaker.data.prompts import load_prompts
from tastemaker.errors import ConfigError
from tastemaker.labelling.settings import Labelling, Mode
from tastemaker.printing import print_lines

if TYPE_CHECKING:
    from tastemaker.config.schema import Sampling
    from tastemaker.human_evaluation.create import Candidate, Row
    from tastemaker.human_evaluation.study import Question


@dataclass(frozen=True)
class CreateArgs:
    """Makes a blind comparison: a labelling project with images of two or three models for the same prompts and seeds.

    Each model is given as NAME=SOURCE: a model, a run, an adapter, or a folder of images with prompts. Labelers never
    see the names. With --height and --width, images that have another size are scaled.
    """

    project: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="PROJECT", help_behavior_hint="")] = (
        None
    )
    """Folder of the new project."""
    models: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME=SOURCE...", help_behavior_hint="")
    ] = ()
    """The models, such as base=bundled trained=runs/ddpo-compressibility-1."""
    prompts: Annotated[
        str | None, tyro.conf.arg(metavar="LIST", help_behavior_hint="(default: the run's or the images')")
    ] = None
    """A built-in list, file, data set or template (`tastemaker ls prompts`)."""
    n: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 1, or all images)")] = None
    """Seeds of each prompt."""
    questions: tuple[str, ...] = ("fidelity", "alignment")
    """What is asked of each prompt and seed: fidelity, alignment, or your own as NAME=TEXT."""
    mode: Annotated[
        Literal["pair", "best", "rank"] | None,
        tyro.conf.arg(help_behavior_hint="(default: pair for two models, best for three)"),
    ] = None
    """`pair`: the better of two, each two models in tasks of their own. `best`: the best of all. `rank`: the order of
    all."""
    overlap: int = Labelling.overlap
    """Labelers of each task."""
    stop_when: Literal["decided", "complete"] = "decided"
    """`decided`: the study may stop when every preference is decided. `complete`: when all tasks are answered."""
    max_answers: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """Answers to each question after which the study may stop in any case."""
    level: float = 0.95
    """Level of all intervals, and of the study's decisions together."""
    ties: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Two images may be called equal."""
    both_bad: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Two images may be called equal and unacceptable; of several, none need be the best. Counted as ties."""
    skip: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Tasks may be skipped."""
    marks: tuple[str, ...] = ()
    """What may be marked on single images besides."""
    title: str = "Image comparison"
    """Shown at the top of the page."""
    instructions: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A Markdown file with instructions for labelers."""
    gold_rate: float = Labelling.gold_rate
    """Share of gold tasks (`tastemaker label import --format gold`)."""
    repeat_rate: float = Labelling.repeat_rate
    """Share of tasks that a labeler is given once more, with the sides swapped."""
    lease_minutes: float = Labelling.lease_minutes
    """Minutes for which a task is kept for its labeler."""
    base: Annotated[
        str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(default: the run's, or bundled)")
    ] = None
    """The model that adapters are put on which belong to no run."""
    seed: int = 0
    """Of the images."""
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    database: Annotated[str | None, tyro.conf.arg(metavar="URL", help_behavior_hint="(default: SQLite in PROJECT)")] = (
        None
    )
    """An empty PostgreSQL database, as postgresql://USER@HOST/NAME."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything and print what would be made, without making it."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(CreateArgs, argv, "compare create")
    if args.project is None:
        raise ConfigError(
            "give the folder of the new project and the models, as in `tastemaker compare create labels/study "
            "base=bundled trained=RUN`"
        )
    for name, value in {"n": args.n, "max-answers": args.max_answers}.items():
        if value is not None:
            require_at_least(name, value, 1)
    if not 0 < args.level < 1:
        raise ConfigError(f"--level is {args.level:g}, but must lie between 0 and 1, such as 0.95")
    require_unused(args.project)
    given = [recognised(as_source(word, "models"), args.base) for word in args.models]
    base, of_runs = base_settings(given, given_flags(args.sampling))
    sampling = chosen_sampling(base, args.sampling)
    from tastemaker.human_evaluation.create import check_models, create_comparison, left_out, rows_of
    from tastemaker.human_evaluation.study import Stopping, asked
    from tastemaker.labelling.sources import Recipe

    check_models([one.described for one in given])
    found = candidates(given, sampling)
    mode = args.mode or ("pair" if len(found) == 2 else "best")
    questions = asked([as_text(word, "--questions") for word in args.questions], mode)
    settings = _settings(args, mode, len(found), questions)
    rows = rows_of(found, _prompts(args, of_runs, found), args.n)
    _print_plan(args, found, rows, questions, settings)
    if args.dry_run:
        _check_models({one.model for one in given if one.model is not None}, sampling)
        return 0
    width, height = args.sampling.width, args.sampling.height
    size = None if width is None or height is None else (width, height)
    recipe = Recipe(sampling.steps, sampling.guidance, sampling.eta, args.seed, sde_type=sampling.sde_type)
    stopping = Stopping(args.stop_when, args.max_answers, args.level)
    with images_progress(len(found) * len(rows)) as advance:
        create_comparison(
            args.project, settings, found, rows, questions, stopping, recipe, size=size, database=args.database,
            advance=advance,
        )  # fmt: skip
    for name, count in left_out(found, rows).items():
        if count:
            print_lines(f"{name}: {count} images are left out, which not all models have or which were not chosen")
    print_lines(f"let people answer it with: tastemaker compare serve {args.project}")
    return 0


def _prompts(args: CreateArgs, of_runs: str | None, found: list[Candidate]) -> tuple[str, ...] | None:
    """The prompts that were chosen, or the runs'; None where images bring theirs, or nothing says which."""
    from tastemaker.human_evaluation.create import FromImages

    if args.prompts is not None:
        return load_prompts(as_source(args.prompts, "--prompts")).prompts
    if of_runs is None or any(isinstance(one, FromImages) for one in found):
        return None
    return load_prompts(of_runs).prompts


def _settings(args: CreateArgs, mode: Mode, models: int, questions: tuple[Question, ...]) -> Labelling:
    instructions = ""
    if args.instructions is not None:
        from tastemaker.data.tables import read_text

        instructions = read_text(args.instructions)
    return Labelling(
        mode=mode, images=2 if mode == "pair" else models, title=as_text(args.title, "--title"),
        question=questions[0].text, instructions=instructions, ties=args.ties, both_bad=args.both_bad, skip=args.skip,
        marks=tuple(as_text(mark, "--marks") for mark in args.marks), overlap=args.overlap, gold_rate=args.gold_rate,
        repeat_rate=args.repeat_rate, lease_minutes=args.lease_minutes, validation=0.0,
    )  # fmt: skip


def _print_plan(
    args: CreateArgs, found: list[Candidate], rows: list[Row], questions: tuple[Question, ...], settings: Labelling
) -> None:
    prompts = len({prompt for prompt, _ in rows})
    sets = len(found) * (len(found) - 1) // 2 if settings.mode == "pair" else 1
    tasks = len(rows) * len(questions) * sets
    print_lines(f"{', '.join(f'{one.model.name} ({one.model.source})' for one in found)}")
    print_lines(
        f"{prompts} prompts, {len(rows)} prompts and seeds, {len(questions)} questions: {tasks} tasks of "
        f"{settings.task_size} images, {tasks * settings.overlap} answers, into {args.project}"
    )


def _check_models(models: set[str], sampling: Sampling) -> None:
    from tastemaker.evaluation.model_settings import set_up
    from tastemaker.models import load_meta_model

    for model in sorted(models):
        set_up(load_meta_model(model), sampling)
