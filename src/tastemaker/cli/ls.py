"""`tastemaker ls`: what there is, a line each. Reads registries only, so that it stays fast."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import tyro

from tastemaker.cli.arguments import parse
from tastemaker.errors import ConfigError, nearest
from tastemaker.models.bundled import shipped

OTHER_MODELS = {
    "FOLDER or OWNER/NAME": "a diffusers pipeline of Stable Diffusion 1.x, 2.x, XL, 3 or 3.5, FLUX.1-dev, FLUX.2 "
    "[klein] base or Z-Image, a DDPMPipeline or a DDIMPipeline, local or on the hub",
}


@dataclass(frozen=True)
class LsArgs:
    """Lists presets, algorithms, rewards, prompts, models and benchmarks: all of them, or one kind."""

    kind: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[KIND]", help_behavior_hint="")] = None
    """presets, algorithms, rewards, prompts, models or benchmarks; all when left out."""


def _presets() -> dict[str, str]:
    from tastemaker.config.presets import PRESETS

    return {name: f"{preset.summary} [{preset.evidence}]" for name, preset in PRESETS.items()}


def _algorithms() -> dict[str, str]:
    from tastemaker.algorithms.registry import ALGORITHMS, installed, summary

    others = {name: f"from an installed package: {target}" for name, target in installed().items()}
    return {name: summary(algorithm) for name, algorithm in ALGORITHMS.items()} | others


def _rewards() -> dict[str, str]:
    from tastemaker.rewards.registry import BUILTIN, installed

    others = {name: f"from an installed package: {target}" for name, target in installed().items()}
    named = {name if e.argument is None else f"{name}:{e.argument}": e for name, e in BUILTIN.items()}
    shown = {name: e.summary + "; differentiable" * e.differentiable for name, e in named.items()}
    return (
        shown
        | others
        | {
            "http://HOST:PORT": "any of these on a server (`tastemaker reward serve NAME`)",
            "'A + 0.5*B'": "several as one: sums, products, min(A, B), clip(A, LOW, HIGH), standardise(A)",
        }
    )


def _prompts() -> dict[str, str]:
    from tastemaker.data.prompts import BUILTIN, WORDS

    lists = {name: f"{prompts.summary} ({prompts.count} prompts)" for name, prompts in BUILTIN.items()}
    words = {f"[{name}]": f"in a template: {words.summary}" for name, words in WORDS.items()}
    return (
        lists
        | words
        | {
            "FILE": "a .txt, .jsonl, .json, .csv, .tsv or .parquet file",
            "dataset:NAME": "a Hugging Face data set, or a folder that `datasets` reads or wrote",
            "'a(n) [animal] [activity]'": "a template: all combinations of lists, files, or words as in [red|green]",
            "'100 of ...'": "so many of any of these at random, always the same; '101-150 of ...' are others",
        }
    )


def _benchmarks() -> dict[str, str]:
    from tastemaker.question_benchmarks.formats import FORMATS

    return {f"{name}:{one.argument}": f"{one.summary} ({one.published})" for name, one in FORMATS.items()}


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "presets": _presets,
    "algorithms": _algorithms,
    "rewards": _rewards,
    "prompts": _prompts,
    "models": lambda: shipped() | OTHER_MODELS,
    "benchmarks": _benchmarks,
}


def run(argv: list[str]) -> int:
    """Runs the command."""
    kind = parse(LsArgs, argv, "ls").kind
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"unknown kind {kind!r}; {nearest(kind, list(KINDS))}")
    lists = {name: entries() for name, entries in KINDS.items() if kind in (None, name)}
    show = _table if sys.stdout.isatty() else _columns
    show(lists)
    return 0


def _columns(lists: dict[str, dict[str, str]]) -> None:
    for title, entries in lists.items():
        indent = "  " if len(lists) > 1 else ""
        if indent:
            print(f"{title}:")
        width = max(map(len, entries), default=0)
        for name, summary in entries.items():
            print(f"{indent}{name:{width}}  {summary}")


def _table(lists: dict[str, dict[str, str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    for title, entries in lists.items():
        table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=box.SIMPLE)
        table.add_column(no_wrap=True, style="cyan")
        table.add_column()
        for name, summary in entries.items():
            table.add_row(Text(name), Text(summary))
        Console().print(table)
