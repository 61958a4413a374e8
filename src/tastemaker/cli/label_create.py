"""`tastemaker label create`: a labelling project from a run, from a model with prompts, or from images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tastemaker.cli.arguments import flag_types, parse, split_assignments
from tastemaker.cli.folders import require_run, require_unused
from tastemaker.cli.progress import images_progress
from tastemaker.cli.sampling import SamplingFlags, chosen_sampling, require_at_least
from tastemaker.cli.text import as_source, as_text
from tastemaker.config.schema import Config, Sampling
from tastemaker.data.prompts import load_prompts
from tastemaker.errors import ConfigError
from tastemaker.labelling.settings import Labelling, Mode
from tastemaker.printing import print_lines


@dataclass(frozen=True)
class CreateArgs:
    """Makes a labelling project: a folder with images to compare and what people say of them.

    The images come from a run (--run), from a model with prompts (--model, --prompts), from files (--images), or later
    from training runs (--empty).
    """

    project: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="PROJECT", help_behavior_hint="")] = (
        None
    )
    """Folder of the new project."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = None
    """A run: images of its trained model for its prompts, sampled as in its rounds."""
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None
    """`bundled`, a folder with a diffusers pipeline, or a name on the Hugging Face hub."""
    adapter: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """A folder with an adapter, or its .safetensors file, for --model."""
    prompts: Annotated[str | None, tyro.conf.arg(metavar="LIST", help_behavior_hint="")] = None
    """A built-in list, file, data set or template (`tastemaker ls prompts`)."""
    images: Annotated[str | None, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="")] = None
    """Images with captions: a folder of `tastemaker sample`, a folder or table of images, or a data set
    (docs/guides/images.md)."""
    empty: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """No images yet: training runs send theirs (--reward label:PROJECT, docs/guides/live-labelling.md)."""
    tasks: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: one for each prompt)")] = (
        None
    )
    """Tasks; prompts come in turn. With --images at most so many."""
    mode: Mode = "pair"
    """`pair`: the better of two. `rank`: the order of K images, by comparing two at a time. `best`: the best of K.
    `rate`: thumbs up or down."""
    k: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 2, 5, 4, 1 by mode)")] = None
    """Images of a task."""
    title: str = Labelling.title
    """Shown at the top of the page."""
    question: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(default: the mode's)")] = None
    """What labelers are asked."""
    instructions: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A Markdown file with instructions for labelers."""
    transitive: bool = Labelling.transitive
    """Rank by binary insertion. --no-transitive asks for every pair."""
    confirm: bool = Labelling.confirm
    """Ranking ends with a look at the whole order."""
    ties: bool = Labelling.ties
    """Two images may be called equal."""
    both_bad: bool = Labelling.both_bad
    """Two images may be called equal and unacceptable."""
    skip: bool = Labelling.skip
    """Tasks may be skipped."""
    marks: tuple[str, ...] = Labelling.marks
    """What may be marked on single images besides."""
    overlap: int = Labelling.overlap
    """Labelers of each task."""
    gold_rate: float = Labelling.gold_rate
    """Share of gold tasks (`tastemaker label import --format gold`)."""
    repeat_rate: float = Labelling.repeat_rate
    """Share of tasks that a labeler is given once more, with the sides swapped."""
    lease_minutes: float = Labelling.lease_minutes
    """Minutes for which a task is kept for its labeler."""
    validation: float = Labelling.validation
    """Share of the prompts that are set apart for validation."""
    seed: int = 0
    """Of the images, of left and right, and of the split."""
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    database: Annotated[str | None, tyro.conf.arg(metavar="URL", help_behavior_hint="(default: SQLite in PROJECT)")] = (
        None
    )
    """An empty PostgreSQL database, as postgresql://USER@HOST/NAME."""
    serve: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Serve the project then, as `tastemaker label serve PROJECT` does."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything and print what would be made, without making it."""


@dataclass(frozen=True)
class _Source:
    """The model that makes the images."""

    model: str
    adapter: Path | None
    prompts: tuple[str, ...]
    sampling: Sampling
    name: str


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(CreateArgs, split_assignments(argv, flag_types(CreateArgs)), "label create")
    if args.project is None:
        raise ConfigError(
            "give the folder of the new project, as in `tastemaker label create labels/animals --run RUN`"
        )
    settings = _settings(args)
    if args.tasks is not None:
        require_at_least("tasks", args.tasks, 1)
    require_unused(args.project)
    if args.empty:
        return _empty(args, settings)
    source = _source(args)
    if source is None:
        return _from_images(args, settings)
    return _from_model(args, settings, source)


def _settings(args: CreateArgs) -> Labelling:
    instructions = ""
    if args.instructions is not None:
        from tastemaker.data.tables import read_text

        instructions = read_text(args.instructions)
    return Labelling(
        args.mode, args.k, as_text(args.title, "--title"),
        None if args.question is None else as_text(args.question, "--question"), instructions, args.transitive,
        args.confirm, args.ties, args.both_bad, args.skip, tuple(as_text(mark, "--marks") for mark in args.marks),
        args.overlap, args.gold_rate, args.repeat_rate, args.lease_minutes, args.validation, args.seed,
    )  # fmt: skip


def _source(args: CreateArgs) -> _Source | None:
    """The model that the images come from; None where they are files. Raises ConfigError."""
    given = [name for name in ("run", "model", "images") if getattr(args, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"give only one of --run, --model and --images, not --{given[0]} and --{given[1]}")
    if args.images is not None:
        if args.prompts is not None:
            raise ConfigError("--images have their own prompts: leave --prompts out")
        return None
    base, adapter, model = Config(), args.adapter, args.model or "bundled"
    if args.run is not None:
        if adapter is not None:
            raise ConfigError("--adapter is for --model; a run has its own")
        from tastemaker.config.yaml_file import load_config
        from tastemaker.models.adapter_files import find_adapter

        base = load_config(require_run(args.run) / "config.yaml", base)
        adapter, model = find_adapter(args.run), base.model
    elif args.prompts is None:
        raise ConfigError("give a run by --run, a model's prompts by --prompts, images by --images, or --empty")
    listed = as_source(args.prompts or base.prompts, "--prompts")
    sampling = chosen_sampling(base.sampling, args.sampling)
    name = str(args.run or args.adapter or model)
    return _Source(model, adapter, load_prompts(listed).prompts, sampling, name)


def _empty(args: CreateArgs, settings: Labelling) -> int:
    from tastemaker.labelling.create import create_from_tasks

    assert args.project is not None
    for name in ("run", "model", "adapter", "prompts", "images", "tasks"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--empty makes a project without images: leave --{name} out")
    if args.dry_run:
        print(f"no tasks, into {args.project}")
        return 0
    create_from_tasks(args.project, settings, [], args.database)
    return _made(args, f"no tasks; a training run sends its images with --reward label:{args.project}")


def _from_images(args: CreateArgs, settings: Labelling) -> int:
    from tastemaker.labelling.create import create_from_tasks
    from tastemaker.labelling.sources import image_tasks

    assert args.project is not None
    tasks, left = image_tasks(as_source(str(args.images), "--images"), settings, args.tasks)
    left_over = f" ({left} images are left over)" if left else ""
    if args.dry_run:
        print(f"{len(tasks)} tasks of {settings.task_size} images{left_over}, into {args.project}")
        return 0
    with images_progress(len(tasks) * settings.task_size) as advance:
        create_from_tasks(args.project, settings, tasks, args.database, advance)
    return _made(args, f"{len(tasks)} tasks of {settings.task_size} images{left_over}")


def _from_model(args: CreateArgs, settings: Labelling, source: _Source) -> int:
    assert args.project is not None
    tasks = args.tasks or len(source.prompts)
    text = f"{tasks} tasks of {settings.task_size} images"
    if args.dry_run:
        from tastemaker.evaluation.model_settings import set_up
        from tastemaker.models import load_meta_model

        set_up(load_meta_model(source.model), source.sampling)
        print(f"{text} of {source.name}, {source.sampling.steps} steps, into {args.project}")
        return 0
    from tastemaker.evaluation.images import load_here
    from tastemaker.labelling.create import Sampled, create_from_model
    from tastemaker.labelling.sources import Recipe
    from tastemaker.models.adapter_files import find_adapter

    model = load_here(source.model, source.sampling)
    if source.adapter is not None:
        model.weights.load(find_adapter(source.adapter))
    recipe = Recipe(
        source.sampling.steps,
        source.sampling.guidance,
        source.sampling.eta,
        args.seed,
        sde_type=source.sampling.sde_type,
    )
    origin = {"model": source.model, "adapter": None if source.adapter is None else str(source.adapter)}
    sampled = Sampled(model, source.prompts, tasks, recipe, source.name, origin)
    with images_progress(tasks * settings.task_size) as advance:
        create_from_model(args.project, settings, sampled, args.database, advance)
    return _made(args, text)


def _made(args: CreateArgs, text: str) -> int:
    print_lines(f"{args.project}: {text}")
    if not args.serve:
        print_lines(f"label them with: tastemaker label serve {args.project}")
        return 0
    from tastemaker.cli.label_serve import run as serve

    return serve([str(args.project)])
