"""`tastemaker reward train`: a reward model from a labelling project, a table of comparisons or a data set."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tastemaker.cli.arguments import flag_types, parse, split_assignments
from tastemaker.cli.folders import next_free, require_unused
from tastemaker.cli.sampling import require_at_least
from tastemaker.cli.text import as_source
from tastemaker.errors import ConfigError
from tastemaker.printing import print_lines
from tastemaker.reward_models.settings import Training, check
from tastemaker.rewards.preferences.architecture import Architecture, Kind


@dataclass(frozen=True)
class RewardTrainArgs:
    """Trains a reward model on people's comparisons of images; a run uses it as `--reward DIR`.

    SOURCE is a labelling project, a table of pairs, or a data set (docs/methods/reward-models.md); of several, all
    comparisons are learned from.
    """

    source: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE...", help_behavior_hint="")
    ] = ()
    """Folders of labelling projects, tables of pairs or data sets."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/reward-model-<n>)")] = (
        None
    )
    """Folder of the reward model."""
    kind: Kind = "unet"
    """`unet`: the encoder of the model's own U-Net with an attention pool (the thesis' model). `transformer`: the same
    on the first blocks of the model's transformer. `clip`: a CLIP with PickScore's objective. `head`: a linear layer or
    MLP on frozen features, for few labels."""
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(default: bundled)")] = None
    """The diffusion model: `bundled`, a folder or a hub name."""
    clip: Annotated[str | None, tyro.conf.arg(metavar="CLIP", help_behavior_hint="(default: bundled)")] = None
    """The CLIP: `bundled`, a folder, a hub name, or a file with open_clip's names."""
    features: Literal["clip", "unet", "transformer"] = Architecture.features
    """head: whose features."""
    size: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: the model's)")] = None
    """Pixels to a side of the images, for a reward model on latents."""
    timesteps: tuple[int, ...] = Architecture.timesteps
    """Training times at which the diffusion model's network is asked; images are scored at the first."""
    blocks: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: half of them)")] = None
    """transformer: how many of its blocks are used."""
    precision: Literal["fp32", "bf16"] = Architecture.precision
    """transformer: of the frozen weights."""
    heads: int = Architecture.heads
    """unet and transformer: heads of the attention pool."""
    layers: int = Architecture.layers
    """clip: last layers of the image tower that are trained too."""
    logit_scale: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = Architecture.logit_scale
    """clip: what the cosine is multiplied by before training; None takes the CLIP's own, as PickScore does."""
    hidden: int = Architecture.hidden
    """head: width of the hidden layer; 0 is a linear layer."""
    dropout: float = Architecture.dropout
    """head: dropout."""
    seed: int = 0
    """Of the weights, of the order of tasks, and of the split where the data have none."""
    epochs: int = Training.epochs
    """Most passes over the training tasks."""
    lr: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: the kind's)")] = None
    """Learning rate of AdamW."""
    weight_decay: float = Training.weight_decay
    """Of AdamW."""
    center_rewards_coefficient: float = Training.center_rewards_coefficient
    """Weight of a penalty that draws the mean reward of each task to 0, as in TRL."""
    batch: int = Training.batch
    """Tasks in an update."""
    patience: int = Training.patience
    """Epochs without a lower validation loss after which training ends."""
    text_dropout: float = Training.text_dropout
    """Share of the tasks of an update that are shown without their prompt."""
    guidance: float = Training.guidance
    """Classifier-free reward guidance: how much the prompt counts when the model is used."""
    members: int = Training.members
    """Models of an ensemble."""
    bootstrap: bool = Training.bootstrap
    """Each member of an ensemble learns from a bootstrap sample of the tasks."""
    refit: bool = Training.refit
    """Train again on all tasks, for as many epochs as were best."""
    curve: tuple[int, ...] = Training.curve
    """Numbers of training tasks of the learning curve."""
    no_curve: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Leave the learning curve out."""
    standardise: Literal["compared", "samples"] = "compared"
    """By which images: those that were compared, or new samples of --model."""
    samples: int = 256
    """Images, with --standardise samples."""
    steps: int = 50
    """Denoising steps of these images."""
    validation: Annotated[
        float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: the project's, or 0.2)")
    ] = None
    """Share of the prompts that are set apart for validation, in [0, 1)."""
    split_by: Literal["prompt", "task"] = "prompt"
    """What is set apart: prompts with all their tasks, or single tasks, for data of few prompts."""
    split: str = "train"
    """Of a data set: which of its splits."""
    resize: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Scale and cut images that are not of the model's size."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything and print what would be trained, without training."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(RewardTrainArgs, split_assignments(argv, flag_types(RewardTrainArgs)), "reward train")
    if not args.source:
        raise ConfigError(
            "give a labelling project or a table of pairs, as in `tastemaker reward train labels/animals`"
        )
    sources = [as_source(source, "the source") for source in args.source]
    architecture, training = _architecture(args), _training(args)
    check(architecture, training)
    require_at_least("samples", args.samples, 2)
    require_at_least("steps", args.steps, 1)
    if args.validation is not None and not 0 <= args.validation < 1:
        raise ConfigError(f"--validation is {args.validation:g}, but must lie in [0, 1)")
    out = require_unused(args.out or next_free("reward-model"))
    from tastemaker.reward_models.comparisons import load_several

    found = load_several(sources, validation=args.validation, seed=args.seed, split_by=args.split_by, split=args.split)
    facts = found.facts
    line = (
        f"{len(found.training)} training and {len(found.validation)} validation tasks, {facts['pairs']:,} pairs "
        f"({facts['ties']:,} ties), {facts['images']:,} images, {facts['prompts']:,} prompts"
    )
    note = ""
    if moved := facts.get("moved"):
        note = (
            f"\n{moved} of the validation tasks are training tasks of their own source, but another source sets their "
            "prompts apart: --validation 0.2 splits all sources anew"
        )
    if args.dry_run:
        _try_out(architecture, args.resize, found)
        print(f"{line}; {architecture.described} of {architecture.base}, into {out}{note}")
        return 0
    from tastemaker.reward_models.train import Samples, train_reward_model

    print(line + note, flush=True)
    samples = Samples(args.model or "bundled", args.samples, args.steps) if args.standardise == "samples" else None
    result = train_reward_model(
        found, architecture, training, out, resize=args.resize, samples=samples,
        command=shlex.join(["tastemaker", "reward", "train", *argv]),
        log=lambda text: print(f"tastemaker: {text}", file=sys.stderr, flush=True),
    )  # fmt: skip
    if result.accuracy is not None:
        share = result.accuracy
        print(
            f"validation accuracy {share.value:.1%} (95 % interval {share.low:.1%} to {share.high:.1%}, {share.count} "
            "pairs)"
        )
    print_lines(out / "report.html", f"use it: --reward {out}")
    return 0


def _architecture(args: RewardTrainArgs) -> Architecture:
    """The architecture, without a diffusion model that is only sampled from."""
    given: dict[str, str] = {}
    if args.clip is not None:
        given["clip"] = args.clip
    latent = (args.features if args.kind == "head" else args.kind) in ("unet", "transformer")
    if args.model is not None and (latent or args.standardise != "samples"):
        given["model"] = args.model
    return Architecture(
        args.kind, features=args.features, size=args.size, timesteps=args.timesteps, blocks=args.blocks,
        precision=args.precision, heads=args.heads, layers=args.layers, logit_scale=args.logit_scale,
        hidden=args.hidden, dropout=args.dropout, **given,
    )  # fmt: skip


def _training(args: RewardTrainArgs) -> Training:
    return Training(
        seed=args.seed, epochs=args.epochs, lr=args.lr, weight_decay=args.weight_decay,
        center_rewards_coefficient=args.center_rewards_coefficient, batch=args.batch, patience=args.patience,
        text_dropout=args.text_dropout, guidance=args.guidance, members=args.members, bootstrap=args.bootstrap,
        refit=args.refit, curve=() if args.no_curve else args.curve, standardise=args.standardise,
    )  # fmt: skip


def _try_out(architecture: Architecture, resize: bool, found: object) -> None:
    """Loads the base model and reads the first image, which training begins with. Raises a TastemakerError."""
    from tastemaker.reward_models.comparisons import Comparisons
    from tastemaker.reward_models.features import first_input
    from tastemaker.rewards.preferences.backbones import load_backbone

    assert isinstance(found, Comparisons)
    first_input(found, load_backbone(architecture), resize)
