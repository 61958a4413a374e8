"""`tastemaker ask`: a benchmark of prompts with questions, answered by a vision-language model or the judge."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from tastemaker.cli.arguments import flag_types, parse, split_assignments
from tastemaker.cli.folders import next_free, run_config
from tastemaker.cli.sampling import SamplingFlags, chosen_sampling, require_at_least
from tastemaker.cli.text import as_source
from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError
from tastemaker.printing import Output, print_lines
from tastemaker.question_benchmarks.settings import JUDGE, SETTINGS, TEXT_MODEL, Calls

if TYPE_CHECKING:
    from tastemaker.config.schema import Sampling as SamplerSettings
    from tastemaker.question_benchmarks.benchmark import Benchmark
    from tastemaker.question_benchmarks.results import Results
    from tastemaker.question_benchmarks.run import Advance, Given, Plan
    from tastemaker.question_benchmarks.sampling import Sampling


@dataclass(frozen=True)
class AskArgs:
    """Samples a benchmark's prompts, asks its questions about the images, and writes the scores with intervals.

    Given --out of a benchmark that was interrupted, it goes on, and makes and asks nothing twice.
    """

    benchmark: Annotated[
        tyro.conf.Positional[str | None], tyro.conf.arg(metavar="BENCHMARK", help_behavior_hint="")
    ] = None
    """`bundled`, a published file (GenEval 2, DPG-Bench, TIFA, GenAI-Bench) or folder (OneIG-Bench), or NAME:PATH with
    the name of its form (geneval2, dpg, tifa, tifa-free-form, oneig, oneig-zh, genai-bench); vqascore:PROMPTS,
    bundled:PROMPTS."""
    model: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None
    """A run, or as --model of `tastemaker sample`: `bundled`, a folder, a name on the hub."""
    vlm: Annotated[str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(bundled: judge)")] = None
    """Who answers: MODEL@http://HOST:PORT/v1 on a server, MODEL in this process (a folder or a name on the hub), or
    `judge`, for drawings."""
    calls: Annotated[Calls, tyro.conf.arg(name="vlm")] = field(default_factory=Calls)
    written: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Count answers as they are written, for a model that gives no probabilities."""
    text_model: str = TEXT_MODEL
    """tifa-free-form: the sentence encoder by which an answer is taken for the nearest choice, a folder or a name on
    the hub."""
    adapter: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """An adapter for MODEL: a folder, or its .safetensors file."""
    images: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Images that are there, in place of MODEL: a folder with files ID.png or ID-0.png, ID-1.png, ..., or with
    samples.json, or a JSON file {PROMPT OR ID: FILE}."""
    grid: int = 1
    """--images: each file has GRID x GRID images (DPG-Bench, OneIG-Bench: 2)."""
    take: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """Prompts taken evenly from the benchmark, for a quick look."""
    n: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: the benchmark's)")] = None
    """Images of each prompt."""
    seed: int = 0
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    batch: int = 16
    """Images sampled at once."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/ask-<n>)")] = None
    """Folder of images, answers and results."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything and print what would be asked, without sampling or asking."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(AskArgs, split_assignments(argv, flag_types(AskArgs)), "ask")
    if args.benchmark is None:
        raise ConfigError("give a benchmark, as in `tastemaker ask bundled bundled`; see `tastemaker ask --help`")
    _check(args)
    given = as_source(args.benchmark, "the benchmark")
    vlm = args.vlm if args.vlm is not None else JUDGE if given.partition(":")[0] == "bundled" else None
    if vlm is None:
        raise ConfigError(
            "give who answers by --vlm: MODEL@http://HOST:PORT/v1 for a model on a server, or MODEL for one in this "
            "process"
        )
    out = args.out or next_free("ask")
    if not (out / SETTINGS).is_file():
        from tastemaker.cli.folders import require_unused

        require_unused(out)
    from tastemaker.question_benchmarks.benchmark import take
    from tastemaker.question_benchmarks.formats import load_benchmark
    from tastemaker.question_benchmarks.run import Plan
    from tastemaker.question_benchmarks.run import run as ask

    benchmark = load_benchmark(given)
    if args.take is not None:
        benchmark = take(benchmark, args.take)
    plan = Plan(benchmark, _images(args, benchmark), vlm, out, args.calls, args.written, args.text_model)
    if args.dry_run:
        print_lines(_planned(plan))
        return 0
    print_lines(f"{benchmark.name}: {len(benchmark.prompts)} prompts, into {out}")
    with _progress() as advance:
        results = ask(plan, advance)
    _show(results, out)
    return 0


def _check(args: AskArgs) -> None:
    if (args.model is None) == (args.images is None):
        raise ConfigError("give a model or run whose images are made, or images by --images, and not both")
    if args.images is not None and args.adapter is not None:
        raise ConfigError("--adapter is for a model whose images are made: leave it out with --images")
    if args.images is None and args.grid != 1:
        raise ConfigError("--grid is for --images")
    for name in ("grid", "take", "n", "batch"):
        if (value := getattr(args, name)) is not None:
            require_at_least(name, value, 1)


def _images(args: AskArgs, benchmark: Benchmark) -> Sampling | Given:
    from tastemaker.question_benchmarks.run import Given
    from tastemaker.question_benchmarks.sampling import sampling_of

    if args.images is not None:
        return Given(args.images, args.n, args.grid)
    assert args.model is not None
    model, adapter, base = _model(args.model, args.adapter)
    sampling = chosen_sampling(base, args.sampling)
    name = args.model if args.adapter is None else f"{args.model} with {args.adapter}"
    return sampling_of(
        model, adapter, name=name, n=args.n or benchmark.per_prompt, seed=args.seed, sampling=sampling, batch=args.batch
    )


def _model(given: str, adapter: Path | None) -> tuple[str, Path | None, SamplerSettings]:
    """The base model, its adapter and the sampler's settings, of a run or a model. Raises ConfigError."""
    path = Path(given)
    config = run_config(path) if path.exists() else None
    if config is not None:
        if adapter is not None:
            raise ConfigError(f"{given} is a run, which has an adapter of its own: leave --adapter out")
        return config.model, path, config.sampling
    if adapter is None:
        return given, None, Config().sampling
    if not adapter.exists():
        raise ConfigError(f"--adapter is {adapter}, but there is no such folder or file")
    return given, adapter, (run_config(adapter) or Config()).sampling


def _planned(plan: Plan) -> str:
    from tastemaker.question_benchmarks.images import find_pictures
    from tastemaker.question_benchmarks.run import Given

    prompts, images = plan.benchmark.prompts, plan.images
    if isinstance(images, Given):
        found = find_pictures(images.path, prompts, images.n, images.grid)
        shown, answers = (
            f"{len(found)} images in {images.path}",
            sum(len(prompts[one.prompt].questions) for one in found),
        )
    else:
        shown = f"{images.n} {'image' if images.n == 1 else 'images'} each of {images.name}, {images.steps} steps"
        answers = plan.benchmark.questions * images.n
    counted = f"{len(prompts)} {'prompt' if len(prompts) == 1 else 'prompts'} with {shown}"
    return f"{plan.benchmark.name}: {counted}; {answers} answers of {plan.vlm_name}, into {plan.out}"


@contextmanager
def _progress() -> Iterator[Advance]:
    """A bar over images that are made and one over answers; gives what advances them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    output: Any = Output(sys.stderr)
    console = Console(file=output)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield advance


def _show(results: Results, out: Path) -> None:
    """Prints the figures, and where the rest is."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", title=f"{results.benchmark}: {results.images_of}")
    for name in ("mean", "95 % interval", "values"):
        table.add_column(name, justify="right")
    last = None
    for one in results.figures:
        heading = one.heading if one.heading != last else ""
        interval = f"{100 * one.low:.1f} to {100 * one.high:.1f}"
        table.add_row(heading, one.name, f"{100 * one.mean:.1f} %", interval, str(one.values))
        last = one.heading
    output: Any = Output(sys.stdout)
    Console(file=output).print(table)
    notes = []
    if results.no_choice:
        notes.append(f"answers that are none of the choices, and count as wrong: {results.no_choice}")
    if results.not_listed:
        notes.append(f"answers whose expected word is not among the likeliest, probability 0: {results.not_listed}")
    print_lines(*notes, out / "results.md", out / "results.json", out / "answers.jsonl")
