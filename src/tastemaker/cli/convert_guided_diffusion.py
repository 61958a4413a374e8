"""`tastemaker convert guided-diffusion`: a checkpoint of OpenAI's as a folder of a diffusers pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tastemaker.cli.arguments import parse
from tastemaker.cli.folders import require_unused
from tastemaker.errors import ConfigError
from tastemaker.models.guided_diffusion_flags import Flags
from tastemaker.printing import print_lines


@dataclass(frozen=True)
class GuidedDiffusionArgs:
    """Makes a folder of a diffusers pipeline of a checkpoint of guided-diffusion or improved-diffusion.

    The flags are those that the checkpoint was trained with, as the libraries' README files state them.
    """

    file: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """The checkpoint, such as 64x64_diffusion.pt."""
    out: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="OUT", help_behavior_hint="")] = None
    """The new folder, which --model takes."""
    flags: Annotated[Flags, tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff] = field(default_factory=Flags)
    classes: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: 0, 1, ...)")] = None
    """A text file with the names of the classes, a line for each in their order; a line may have several names with
    commas in between."""
    use_fp16: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Without effect, as the three below: of how a checkpoint was trained, and not of what it is."""
    use_checkpoint: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Without effect."""
    use_kl: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Without effect."""
    rescale_learned_sigmas: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Without effect."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(GuidedDiffusionArgs, argv, "convert guided-diffusion")
    if args.file is None or args.out is None:
        raise ConfigError(
            "give a checkpoint and a new folder, as in `tastemaker convert guided-diffusion 64x64_diffusion.pt "
            "models/imagenet64` with the checkpoint's flags"
        )
    require_unused(args.out)
    names = _names(args.classes) if args.classes is not None else None
    from tastemaker.models.guided_diffusion import pipeline, read_checkpoint
    from tastemaker.models.library_logging import quiet
    from tastemaker.runs.folders import new_folder

    made = pipeline(read_checkpoint(args.file), args.flags, names)
    with new_folder(args.out) as folder, quiet():
        made.save_pretrained(folder)
    parameters = sum(parameter.numel() for parameter in made.unet.parameters())
    print_lines(f"{args.out}: a U-Net of {parameters:,} parameters, for --model {args.out}")
    return 0


def _names(path: Path) -> list[str]:
    """The lines of a file with names of classes. Raises ConfigError for one that is empty."""
    from tastemaker.data.tables import read_text

    lines = read_text(path).splitlines()
    if empty := [number for number, line in enumerate(lines, 1) if not line.strip()]:
        raise ConfigError(f"{path} has no name in line {empty[0]}: expected the name of a class in each line")
    return lines
