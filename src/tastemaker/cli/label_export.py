"""`tastemaker label export`: a project's labels in the formats that training scripts read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tastemaker.cli.arguments import parse
from tastemaker.cli.text import as_text
from tastemaker.errors import ConfigError
from tastemaker.printing import print_lines


@dataclass(frozen=True)
class ExportArgs:
    """Writes a labelling project's labels into a new folder (docs/guides/preference-formats.md).

    Prompts set apart for validation are in files of their own. Labelling may go on meanwhile.
    """

    project: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="PROJECT", help_behavior_hint="")] = (
        None
    )
    """Folder of the project."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: PROJECT-FORMAT)")] = None
    """New folder."""
    format: Annotated[str, tyro.conf.arg(metavar="NAME")] = "native"
    """native (everything; `label import` makes an equal project of it), pairs (Pick-a-Pic v2 and diffusers' DPO
    scripts), hpdv2, hpdv3, imagereward, rapidata, open-image-preferences."""
    table: Annotated[
        Literal["parquet", "jsonl"] | None,
        tyro.conf.arg(help_behavior_hint="(default: jsonl for native, parquet for pairs and the last two)"),
    ] = None
    """Parquet with the images in it, or JSON lines with image files beside them."""
    split: Annotated[Literal["train", "validation"] | None, tyro.conf.arg(help_behavior_hint="(default: both)")] = None
    """Prompts of one part alone."""
    labelers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...", help_behavior_hint="(default: all)")] = ()
    """Labelers whose answers are exported."""
    conflicts: Literal["all", "majority", "unanimous"] = "all"
    """Where labelers disagree: each vote is a row; one row for what most say; one row where nobody says the
    opposite."""
    include_surplus: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Answers beyond the project's overlap too."""
    pseudonyms: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Codes in place of the labelers' names."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(ExportArgs, argv, "label export")
    if args.project is None:
        raise ConfigError("give the folder of a project, as in `tastemaker label export labels/animals`")
    from tastemaker.labelling.export import ExportOptions, export_project
    from tastemaker.labelling.project import open_project

    labelers = tuple(as_text(name, "--labelers") for name in args.labelers) or None
    options = ExportOptions(labelers, args.split, args.include_surplus, args.pseudonyms, args.conflicts, args.table)
    out = args.out or args.project.with_name(f"{args.project.resolve().name}-{args.format}")
    with open_project(args.project) as project:
        done = export_project(project, out, args.format, options)
    for file, rows in done.rows.items():
        print_lines(f"{out / file}: {rows} rows")
    if done.without_winner:
        print_lines(f"left out: {done.without_winner} comparisons without a winner")
    return 0
