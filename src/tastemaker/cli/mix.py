"""`tastemaker mix`: adapters between adapters, and what they are worth by the rewards of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tastemaker.cli.arguments import parse
from tastemaker.cli.folders import next_free, require_unused, run_config
from tastemaker.cli.sampling import SamplingFlags, chosen_sampling, require_at_least
from tastemaker.cli.text import as_source, as_text
from tastemaker.config.schema import Config
from tastemaker.data.prompts import load_prompts
from tastemaker.errors import ConfigError, ModelError

MOST = 101
"""Mixtures in one sweep."""


@dataclass(frozen=True)
class MixArgs:
    """Mixes adapters, and measures the mixtures by the rewards that the adapters were trained on.

    One adapter is mixed with the base model. What is left out is taken from the first adapter's run.
    """

    adapters: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="A [B...]", help_behavior_hint="")
    ] = ()
    """Runs, or folders or .safetensors files with adapters, of one model."""
    alpha: Annotated[str | None, tyro.conf.arg(metavar="NUMBERS", help_behavior_hint="(default: 0:1:0.1)")] = None
    """Weight of A, for one or two adapters; B, or the base model, has the rest. A number, several with commas, or
    start:end:step."""
    weights: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NUMBERS", help_behavior_hint="")
    ] = ()
    """A weight for each adapter, as 0.2,0.3,0.5; may be given several times, instead of --alpha."""
    mode: Literal["factor", "delta"] = "factor"
    """`factor`: mix the factors A and B each for itself (AlignProp). `delta`: mix what they add to the weights."""
    rank: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """`delta`: largest rank of the mixtures, by truncated SVD; the sum of the adapters' ranks when left out."""
    reward: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME", help_behavior_hint="")
    ] = ()
    """A reward to measure by, may be given several times; the runs' own when left out."""
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None
    """The base model of all adapters; the runs' own when left out."""
    prompt: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")
    ] = ()
    """A prompt; may be given several times."""
    prompts: Annotated[str | None, tyro.conf.arg(metavar="LIST", help_behavior_hint="")] = None
    """A built-in list, file, data set or template (`tastemaker ls prompts`); the runs' own when left out."""
    take: int = 8
    """Prompts taken evenly from the lists."""
    n: int = 4
    """Images of each prompt at each mixture, always of the same noise; 0 writes adapters and measures nothing."""
    seed: int = 0
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/mix-<n>)")] = None
    """Folder of the mixtures."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything and print what would be mixed and measured, without doing it."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(MixArgs, argv, "mix")
    points = mixture_points(args)
    settings = _settings(args)
    out = require_unused(args.out or next_free("mix"))
    if args.dry_run:
        from tastemaker.evaluation.model_settings import set_up
        from tastemaker.models import load_meta_model

        set_up(load_meta_model(settings["model"]), settings["sampling"])
        images = len(settings["prompts"]) * settings["n"]
        print(
            f"{len(points)} mixtures ({', '.join(points)}) with {images} images each of {settings['model']}, "
            f"measured by {', '.join(settings['rewards']) or 'no reward'}, into {out}"
        )
        return 0
    from tastemaker.cli.mix_show import show, sweeping
    from tastemaker.evaluation.mixture import Plan, write_mix
    from tastemaker.runs.folders import new_folder

    plan = Plan(adapters=args.adapters, points=points, mode=args.mode, rank=args.rank, seed=args.seed, **settings)
    with new_folder(out) as folder, sweeping(plan) as advance:
        found = write_mix(plan, folder, advance)
    show(plan, found, out)
    return 0


def mixture_points(args: MixArgs) -> dict[str, tuple[float, ...]]:
    """The mixtures' names with their weights. Raises ConfigError where they are none or too many."""
    count = len(args.adapters)
    if not count:
        raise ConfigError("give the folders of the adapters, as in `tastemaker mix runs/a runs/b`")
    if args.alpha is not None and args.weights:
        raise ConfigError("give --alpha or --weights, not both")
    if args.weights:
        rows = [tuple(_numbers("weights", text)) for text in args.weights]
        wrong = [text for row, text in zip(rows, args.weights, strict=True) if len(row) != count]
        if wrong:
            raise ConfigError(f"--weights is {wrong[0]}, but must have a number for each of the {count} adapters")
        return {f"weights {','.join(f'{w:g}' for w in row)}": row for row in rows}
    if count > 2:
        raise ConfigError(f"--alpha mixes two adapters, and there are {count}: give --weights 0.2,0.3,0.5 and the like")
    alphas = _numbers("alpha", args.alpha or "0:1:0.1")
    # Rounded, since 1 - 0.9 is not the number that 0.1 is.
    return {f"alpha {a:g}": (a, round(1 - a, 12))[:count] for a in alphas}


def _numbers(name: str, text: str) -> list[float]:
    """`0.3`, `0,0.5,1` or `0:1:0.1`, the end included."""
    try:
        parts = [float(part) for part in text.replace(":", ",").split(",")]
    except ValueError:
        parts = []
    span = ":" in text
    if not parts or not all(map(math.isfinite, parts)) or (span and (name != "alpha" or text.count(":") != 2)):
        kinds = "a number, several with commas, or start:end:step" if name == "alpha" else "numbers with commas"
        raise ConfigError(f"--{name} is {text!r}, but must be {kinds}")
    if not span:
        return parts
    if parts[2] == 0 or (parts[1] - parts[0]) / parts[2] < 0:
        raise ConfigError(f"--{name} is {text!r}, but must go from start to end by a step that leads there")
    start, end, step = parts
    number = math.floor((end - start) / step + 1e-9) + 1
    if number > MOST:
        raise ConfigError(f"--{name} is {text!r}, which are {number} mixtures, but a sweep has at most {MOST}")
    return [round(start + i * step, 12) + 0.0 for i in range(number)]


def _settings(args: MixArgs) -> dict[str, Any]:
    """Model, rewards, prompts and sampler, as given, else the runs'."""
    for folder in args.adapters:
        if not folder.exists():
            raise ConfigError(f"there is no folder {folder}: give runs, or folders or files with adapters")
    runs = {folder: run_config(folder) for folder in args.adapters}
    known = {folder: config for folder, config in runs.items() if config is not None}
    for folder, config in known.items():
        if config.tuning.mode == "full":
            raise ModelError(f"{folder} trained the whole network (tuning.mode = full), but only adapters can be mixed")
    if args.rank is not None:
        require_at_least("rank", args.rank, 1)
        if args.mode != "delta":
            raise ConfigError("--rank is of mixtures in --mode delta; in --mode factor they have the adapters' own")
    require_at_least("n", args.n, 0)
    require_at_least("take", args.take, 1)
    base = next(iter(known.values()), Config())
    sampling = chosen_sampling(base.sampling, args.sampling)
    model = args.model or _one_model(known)
    if not args.n:
        return {"model": model, "prompts": (), "n": 0, "rewards": (), "sampling": sampling}
    rewards = tuple(as_source(name, "--reward") for name in args.reward) or tuple(
        config.reward for config in known.values()
    )
    if not rewards:
        raise ConfigError("none of the adapters lies in a run, which would name a reward: give --reward NAME")
    prompts = _prompts(args, list(known.values()))
    if len(prompts) * args.n < 2:
        raise ConfigError("one image has no deviation to measure rewards in: give --n 2, or more prompts")
    rewards = tuple(dict.fromkeys(rewards))
    return {"model": model, "prompts": prompts, "n": args.n, "rewards": rewards, "sampling": sampling}


def _one_model(known: dict[Path, Config]) -> str:
    if not known:
        raise ConfigError("none of the adapters lies in a run, which would name the base model: give --model MODEL")
    (first, config), *others = known.items()
    for folder, other in others:
        if other.model != config.model:
            raise ModelError(
                f"{first} was trained on {config.model} and {folder} on {other.model}, but adapters of "
                "different models cannot be mixed (where these are two names of one model, give --model)"
            )
    return config.model


def _prompts(args: MixArgs, known: Sequence[Config]) -> tuple[str, ...]:
    if args.prompt and args.prompts:
        raise ConfigError('give prompts by --prompt "..." or by --prompts LIST, and not by both')
    if args.prompt:
        return tuple(as_text(prompt, "--prompt") for prompt in args.prompt)
    lists = dict.fromkeys(
        (as_source(args.prompts, "--prompts"),) if args.prompts else (config.prompts for config in known)
    )
    if not lists:
        raise ConfigError("none of the adapters lies in a run, which would name prompts: give --prompts or --prompt")
    found = [load_prompts(name) for name in lists]
    # As many of each list, where the runs had different ones.
    share = -(-args.take // len(found))
    chosen = [prompts.prompts[index] for prompts in found for index in prompts.spread(share)]
    return tuple(dict.fromkeys(chosen))[: args.take]
