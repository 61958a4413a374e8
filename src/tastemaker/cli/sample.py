"""`tastemaker sample`: images for prompts, from a model with or without what a run trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tastemaker.cli.arguments import parse
from tastemaker.cli.folders import next_free, require_unused, run_config
from tastemaker.cli.sampling import SamplingFlags, chosen_sampling, require_at_least, step_mask
from tastemaker.cli.text import as_source, as_text
from tastemaker.config.schema import Config, Sampling
from tastemaker.data.prompts import load_prompts
from tastemaker.errors import ConfigError
from tastemaker.printing import print_lines


@dataclass(frozen=True)
class SampleArgs:
    """Makes images for prompts and a sheet that shows them all.

    With --adapter RUN, what is left out is taken from the run: model, steps, guidance and eta.
    """

    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(default: bundled)")] = None
    """`bundled`, a folder with a diffusers pipeline, or a name on the Hugging Face hub."""
    adapter: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """A run, a folder with an adapter, or its .safetensors file; the model as it is when left out."""
    adapter_steps: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="RANGES", help_behavior_hint="")
    ] = ()
    """Steps at which the adapter acts, as 0:10,15:20 (0 is the noisiest; the end is not in it). Given several times:
    a sheet of them beside the base model and the whole adapter."""
    prompt: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")
    ] = ()
    """A prompt; may be given several times."""
    prompts: Annotated[str | None, tyro.conf.arg(metavar="LIST", help_behavior_hint="")] = None
    """A built-in list, file, data set or template (`tastemaker ls prompts`), instead of --prompt."""
    n: int = 4
    """Images of each prompt."""
    seed: int = 0
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/sample-<n>)")] = None
    """Folder of the images."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything and print what would be made, without making it."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(SampleArgs, argv, "sample")
    prompts = _prompts(args)
    model, sampling = _settings(args)
    masks = {ranges: step_mask(ranges, sampling.steps) for ranges in args.adapter_steps}
    if masks and args.adapter is None:
        raise ConfigError("--adapter-steps says when an adapter acts: give it by --adapter RUN")
    out = require_unused(args.out or next_free("sample"))
    if args.dry_run:
        from tastemaker.evaluation.model_settings import set_up
        from tastemaker.models import load_meta_model

        set_up(load_meta_model(model), sampling)
        kinds = f", at {len(masks)} choices of steps, beside the base model and the whole adapter" if masks else ""
        print(f"{len(prompts)} prompts with {args.n} images each of {model}, {sampling.steps} steps{kinds}, into {out}")
        return 0
    if args.adapter is not None and masks:
        from tastemaker.evaluation.step_ranges import write_ranges
        from tastemaker.runs.folders import new_folder

        with new_folder(out) as folder:
            write_ranges(
                model=model,
                adapter=str(args.adapter),
                masks=masks,
                prompts=prompts,
                n=args.n,
                seed=args.seed,
                sampling=sampling,
                folder=folder,
            )
        print_lines(out / "sheet.png")
        return 0
    from tastemaker.evaluation.images import write_samples

    sheet = write_samples(
        model=model,
        adapter=str(args.adapter) if args.adapter else None,
        prompts=prompts,
        n=args.n,
        seed=args.seed,
        sampling=sampling,
        out=out,
    )
    print_lines(sheet)
    return 0


def _prompts(args: SampleArgs) -> tuple[str, ...]:
    if bool(args.prompt) == bool(args.prompts):
        raise ConfigError('give prompts by --prompt "..." or by --prompts LIST, and not by both')
    if args.prompts:
        return load_prompts(as_source(args.prompts, "--prompts")).prompts
    return tuple(as_text(prompt, "--prompt") for prompt in args.prompt)


def _settings(args: SampleArgs) -> tuple[str, Sampling]:
    """Model and sampler settings: as given, else the run's, else a config's defaults."""
    base = Config()
    if args.adapter is not None:
        if not args.adapter.exists():
            raise ConfigError(f"--adapter is {args.adapter}, but there is no such folder or file")
        base = run_config(args.adapter) or base
    require_at_least("n", args.n, 1)
    return args.model or base.model, chosen_sampling(base.sampling, args.sampling)
