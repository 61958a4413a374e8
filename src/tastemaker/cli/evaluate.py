"""`tastemaker evaluate`: models, runs, checkpoints and mixtures on the same prompts and seeds."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tastemaker.cli.arguments import parse
from tastemaker.cli.folders import next_free
from tastemaker.cli.sampling import SamplingFlags
from tastemaker.cli.text import as_source
from tastemaker.errors import ConfigError
from tastemaker.process_count import process_count

if TYPE_CHECKING:
    from tastemaker.cli.evaluation_options import Options

_NAMED = re.compile(r"([A-Za-z][\w .+-]*)=(.*)", re.DOTALL)


def _default(metavar: str, text: str = "the run's") -> Any:
    """How a flag is shown whose default is told by the words `text`."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {text})")


@dataclass(frozen=True)
class EvaluateArgs:
    """Compares models on the same prompts and seeds: rewards, diversity, distances and more, with 95 % intervals.

    Adapters are compared with their base model, which is added. What is left out is taken from the runs. A command that
    was stopped goes on when it is given again with the same --out. NAME=MODEL names a column.
    """

    models: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL...", help_behavior_hint="")
    ] = ()
    """Each one a run (RUN), a round of a run (RUN@20), an adapter, `bundled`, a folder with a diffusers pipeline, a
    hub name, mixtures in quotes ("mix A B --alpha 0:1:0.5"), or a folder that `tastemaker mix` has left."""
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None
    """The base model of adapters that lie in no run; of all adapters where it is given."""
    prompts: Annotated[tuple[str, ...], _default("NAME=LIST...")] = ()
    """Prompt sets that are reported separately, as `seen=LIST unseen=LIST`: lists as `tastemaker ls prompts` shows."""
    prompt_count: Annotated[int | None, _default("INT", "the run's, or 8")] = None
    """Prompts taken evenly from each list."""
    seeds: Annotated[int | None, _default("INT", "the run's, or 4")] = None
    """Images of each prompt."""
    seed: Annotated[int | None, _default("INT")] = None
    """Of the noise; the same for all models."""
    rewards: Annotated[tuple[str, ...], _default("NAME...", "the runs'")] = ()
    """Rewards to measure besides those that the runs were trained on."""
    metrics: Annotated[tuple[str, ...], _default("NAME...", "judge diversity speed")] = ()
    """Any of judge, diversity, pairwise, vendi, fid, kid, clip-inception, kl and speed."""
    features: Annotated[str | None, _default("NAME", "bundled, of the bundled model")] = None
    """What computes the features of pairwise, vendi, fid, kid and clip-inception: a CLIP or module:function."""
    reference: Annotated[Path | None, _default("DIR", "the base model's images")] = None
    """Images that fid and kid compare with."""
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    batch: Annotated[int | None, _default("INT")] = None
    """Images sampled, and scored, at once."""
    precision: Annotated[Literal["fp32", "bf16", "fp16"] | None, _default("{fp32,bf16,fp16}")] = None
    """Of the network's forward passes."""
    out: Annotated[Path | None, _default("DIR", "runs/evaluation-<n>")] = None
    """Folder of the images, tables and the report."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything and print what would be sampled and measured, without doing it."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(EvaluateArgs, argv, "evaluate")
    if process_count() > 1:
        raise ConfigError("tastemaker evaluate is one process: start it without torchrun or `accelerate launch`")
    from tastemaker.cli.evaluation_options import make_plan
    from tastemaker.cli.evaluation_work import check_models, described, evaluate, show

    plan = make_plan(_options(args))
    out = args.out or next_free("evaluation")
    if args.dry_run:
        print(described(plan, check_models(plan), out))
        return 0
    made = evaluate(plan, out, again="give the same command again" + ("" if args.out else f" with --out {out}"))
    show(made, out)
    return 0


def _options(args: EvaluateArgs) -> Options:
    from tastemaker.cli.evaluation_options import Options

    return Options(
        models=[as_source(text, "MODEL") for text in args.models],
        model=args.model,
        prompts=_prompt_lists(args.prompts),
        prompt_count=args.prompt_count,
        seeds=args.seeds,
        seed=args.seed,
        sampling=args.sampling,
        batch=args.batch,
        precision=args.precision,
        rewards=[as_source(name, "--rewards") for name in args.rewards] or None,
        metrics=args.metrics or None,
        features=args.features,
        reference=args.reference,
    )


def _prompt_lists(texts: tuple[str, ...]) -> dict[str, str]:
    """Lists by the names of their prompt sets; a list without a name has its own."""
    found: dict[str, str] = {}
    for text in texts:
        match = None if Path(text).exists() else _NAMED.fullmatch(text)
        name, source = (match[1].strip(), match[2]) if match else (text, text)
        if name in found:
            raise ConfigError(f"--prompts has two lists of the name {name}: give each another, as in NAME=LIST")
        found[name] = as_source(source, "--prompts")
    return found
