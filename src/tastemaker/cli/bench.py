"""`tastemaker bench`: how fast a run's settings are here, and how much of a round is not the network's own time."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tastemaker.cli.settings import read
from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError, TastemakerError
from tastemaker.process_count import process_count

if TYPE_CHECKING:
    from tastemaker.benchmarking.bench import Bench
    from tastemaker.benchmarking.compare import Measured


@dataclass(frozen=True)
class BenchArgs:
    """Measures speed, memory and overhead of a model and its settings, and where a round's time goes.

    Takes the preset or file and the settings of `tastemaker train`. Runs 2 x repeats + 1 rounds; leaves no run folder.
    """

    preset: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[PRESET]", help_behavior_hint="")] = None
    """A name from `tastemaker ls presets`."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A YAML file instead of a preset."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Prints one JSON object and nothing else."""
    repeats: int = 5
    """Rounds measured; the overhead is their median."""
    compare: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Measure what each option of the network gives here: torch.compile, channels-last weights, implementations of
    attention, half precision and gradient checkpointing, each in rounds between those of the settings as given."""
    option: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="SETTINGS", help_behavior_hint="")
    ] = ()
    """Compare these settings in place of the usual ones: `--option optimizer.rows=16`, or several together in quotes,
    `--option "speed.compile=true precision=bf16"`. May be given several times."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything and print what a run of these settings would do, without measuring."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def run(argv: list[str]) -> int:
    """Runs the command. What the run itself says goes to stderr."""
    argv, options = without_options(argv)
    args, name = read(BenchArgs, argv, "bench")
    if args.repeats < 1:
        raise ConfigError(f"--repeats is {args.repeats}, but must be greater than 0")
    if process_count() > 1:
        raise ConfigError("bench measures one process: start it without accelerate launch or torchrun")
    changed = {option: _changed(argv, option) for option in options}
    if args.dry_run:
        from tastemaker.cli.train import dry_run

        return dry_run(args.settings, None)
    if args.compare or options:
        return _compare(args, name, argv, changed)
    with contextlib.redirect_stdout(sys.stderr):
        from tastemaker.benchmarking.bench import bench

        result = bench(args.settings, args.repeats, log=print)
    print(json.dumps({"name": name} | asdict(result), indent=1) if args.json else text(name, result))
    return 0


def without_options(argv: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without `--option`, and its values: they are settings, and not those of the run.

    Raises ConfigError for one without a value.
    """
    rest, options, words = [], [], iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--option":
            value = value if equals else next(words, "")
            if not value.strip():
                raise ConfigError("--option needs settings, as in --option speed.compile=true")
            options.append(value)
        else:
            rest.append(word)
    return rest, options


def _changed(argv: list[str], option: str) -> Config:
    """The settings of the arguments with those of an option. Raises ConfigError that names the option."""
    try:
        return read(BenchArgs, [*argv, *shlex.split(option)], "bench")[0].settings
    except (TastemakerError, ValueError) as error:  # ValueError: a quote that is not closed
        raise ConfigError(f"--option {option!r}: {error}") from error


def _compare(args: BenchArgs, name: str, argv: list[str], given: Mapping[str, Config]) -> int:
    import torch

    from tastemaker.benchmarking.compare import compare, usual_options

    changed: dict[str, Config | TastemakerError] = dict(given)
    for option in [] if given else usual_options(args.settings, torch.cuda.is_available()):
        try:
            changed[option] = _changed(argv, option)
        except ConfigError as error:
            changed[option] = error
    with contextlib.redirect_stdout(sys.stderr):
        found = compare(args.settings, changed, args.repeats, log=print)
    if args.json:
        shown = [asdict(one) | {"wall": one.wall, "ratio": one.ratio} for one in found]
        print(json.dumps({"name": name, "repeats": args.repeats, "options": shown}, indent=1))
    else:
        print(comparison(name, found))
    return 0


def comparison(name: str, found: list[Measured]) -> str:
    """What `--compare` prints for people; the settings as given come first."""
    width = max(len(one.option) for one in found) + 2
    head = ("round, s", "of as given", "range", "images/s", "rows/s", "GiB", "compiling, s")
    lines = [
        f"{name}: rounds of each option between rounds of the settings as given, {len(found[0].walls)} of those",
        "",
    ]
    lines.append(" " * width + "".join(f"{title:>14}" for title in head))
    for one in found:
        if one.refused:
            lines.append(f"{one.option:{width}}not here: {one.refused}")
            continue
        ratios = f"{min(one.ratios):.2f} to {max(one.ratios):.2f}" if one is not found[0] else ""
        cells = (
            f"{one.wall:.3f}", f"{one.ratio:.2f}", ratios, f"{one.images_per_second:.4g}",
            f"{one.rows_per_second:.4g}", f"{one.peak_memory_gib:.2f}",
            f"{one.compile_seconds:.0f}" if one.compile_seconds else "",
        )  # fmt: skip
        lines.append(f"{one.option:{width}}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def text(name: str, found: Bench) -> str:
    """What is printed for people."""
    s, m = found.settings, found.machine
    memory = "of tensors on the GPU" if m["device"] != "cpu" else "of the process, loading included"
    lines = [
        f"{name}: {s['model']} at {s['height']} x {s['width']} px, {s['precision']}, {s['tuning']}; "
        f"{m['device']}, {m['threads']} threads, torch {m['torch']}",
        f"a round: {s['samples']} images of {s['steps']} steps in batches of {s['batch']}, "
        f"{s['trained_rows']} rows trained in batches of {s['rows']}, {s['updates']} updates",
        "",
        f"sampling     {found.images_per_second:.4g} images/s",
        f"training     {found.rows_per_second:.4g} rows/s",
        *([f"compiling    {found.compile_seconds:.0f} s, before the rounds"] if found.compile_seconds else []),
        f"peak memory  {found.peak_memory_gib:.2f} GiB ({memory})",
        f"round        {found.wall:.3f} s ({min(found.walls):.3f} to {max(found.walls):.3f})",
        f"floor        {found.floor:.3f} s (the network calls of a round alone)",
        f"overhead     {found.overhead:.3f} (median of {len(found.walls)}; "
        f"{min(found.overheads):.3f} to {max(found.overheads):.3f})",
        "",
        f"{'phase':30}{'seconds':>9}{'share':>8}",
    ]
    whole = sum(found.phases.values())
    lines += [f"{phase:30}{value:9.3f}{value / whole:8.1%}" for phase, value in found.phases.items()]
    lines += ["", f"{'traced rounds':30}{'seconds':>9}{'floor':>9}{'rest':>9}{'rest/floor':>12}"]
    whole = sum(found.floor_parts.values())
    for part, value in found.parts.items():
        bare = found.floor_parts.get(part, 0.0)
        shown = f"{bare:9.3f}" if part in found.floor_parts else " " * 9
        lines.append(f"{part:30}{value:9.3f}{shown}{value - bare:9.3f}{(value - bare) / whole:12.1%}")
    total = sum(found.parts.values())
    lines.append(f"{'all':30}{total:9.3f}{whole:9.3f}{total - whole:9.3f}{total / whole - 1:12.1%}")
    return "\n".join(lines)
