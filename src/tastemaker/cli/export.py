"""`tastemaker export`: what a run trained, as a file for diffusers, kohya's scripts and web UIs, or ComfyUI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tastemaker.cli.arguments import parse
from tastemaker.cli.folders import is_run, next_free
from tastemaker.errors import ConfigError
from tastemaker.printing import print_lines


@dataclass(frozen=True)
class ExportArgs:
    """Writes what a run trained as a file that other programs load, with a model card and images of the run.

    The card's licence is left for you to fill in.
    """

    run: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = None
    """A run; also `RUN@ROUND`, an adapter or a mixture ("mix A B --alpha 0.5"), as `tastemaker evaluate` takes them."""
    format: Literal["diffusers", "kohya", "comfyui"] = "diffusers"
    """`diffusers`: for `load_lora_weights`. `kohya`: the names of kohya's sd-scripts, which web UIs and ComfyUI read
    too. `comfyui`: the names of ComfyUI's own models."""
    checkpoint: Annotated[str, tyro.conf.arg(metavar="last|best|ROUND")] = "last"
    """Which weights of a run: those that it left, the best ones (over_optimisation.keep_best), or a checkpoint's."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the file's numbers; fp32 is exact, and fp16 usual in web UIs."""
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(default: the run's)")] = None
    """The base model."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: runs/export-<n>)")] = None
    """A new folder, or a .safetensors file, beside which the card is written."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything and print what would be written, without writing it."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(ExportArgs, argv, "export")
    if args.run is None:
        raise ConfigError("give the folder of a run, as in `tastemaker export runs/ddpo-compressibility-1`")
    from tastemaker.cli.evaluated import find_model

    found = find_model(chosen(args.run, args.checkpoint), args.model)
    config = found.configs[0] if len(found.configs) == 1 else None
    folder = run_of(args.run)
    out = args.out or next_free("export")
    from tastemaker.training.export import check_export, export

    if args.dry_run:
        print(check_export(found.evaluated, config, folder, out, args.format))
        return 0
    made = export(found.evaluated, config, folder, out, args.format, args.precision)
    print_lines(made.weights, made.card)
    return 0


def chosen(run: str, checkpoint: str) -> str:
    """The run's weights of a checkpoint, as `tastemaker evaluate` names them. Raises ConfigError."""
    if checkpoint == "last":
        return run
    if not is_run(Path(run)):
        raise ConfigError(f"--checkpoint is {checkpoint}, but {run} is no run: leave it out")
    if checkpoint == "best":
        best = Path(run) / "best"
        if not best.is_dir():
            raise ConfigError(f"{run} has no best model: train with over_optimisation.keep_best=reward/mean")
        return str(best)
    if not checkpoint.isdecimal():
        raise ConfigError(f"--checkpoint is {checkpoint!r}, but must be last, best, or the number of a round")
    return f"{run}@{checkpoint}"


def run_of(text: str) -> Path | None:
    """The run that weights are of, whose images and figures the card shows."""
    path = Path(text.rpartition("@")[0] if "@" in text and not Path(text).exists() else text)
    return next((one for one in (path, path.parent, path.parent.parent) if is_run(one)), None)
