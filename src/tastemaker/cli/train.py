"""`tastemaker train`: a preset or a file, changed by flags, becomes a run."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tastemaker.cli.folders import next_free, require_unused
from tastemaker.cli.settings import read
from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError
from tastemaker.process_count import process_count

if TYPE_CHECKING:
    from tastemaker.training.plan import Facts, Plan


@dataclass(frozen=True)
class Machine:
    """The machines that --dry-run estimates the time of a run for."""

    measure: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Load the model and measure the pieces of a round here, which takes a few network calls of each size."""
    card: str | None = None
    """Assume a GPU's peak rate: t4, v100, rtx-3090, rtx-4090, rtx-5090, a10, l4, l40s, a100, h100 or h200."""
    gpus: int | None = None
    """Processes with a GPU each that share the run; as many as a launcher has started where it is not given."""
    reward_seconds: float | None = None
    """Seconds in which the reward scores an image; measured with --machine.measure where it is not given."""
    reward_servers: int = 0
    """Reward servers that share the images and score a batch while the next one is sampled; 0 for a reward in the
    process itself."""


@dataclass(frozen=True)
class TrainArgs:
    """Trains a model to a reward, starting from a preset or a file.

    The defaults shown are those of the preset or file named before --help. Settings can also be written as
    in `optimizer.lr=1e-4`. Another algorithm, window or selection than the preset's is named as in `algorithm=grpo`;
    an algorithm of your own as in `algorithm=mymodule:Mine`.
    Precedence: preset, then file, then flags.
    """

    preset: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[PRESET]", help_behavior_hint="")] = None
    """A name from `tastemaker ls presets`."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A YAML file instead of a preset; it may name a preset by `preset: NAME`."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/<name>-<n>)")] = None
    """Folder of the run; <name> is the preset's or the file's."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything and print what the run would do, without starting it."""
    machine: Machine = field(default_factory=Machine)
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def run(argv: list[str]) -> int:
    """Runs the command."""
    args, stem = read(TrainArgs, argv, "train")
    out = require_unused(args.out or next_free(stem, agreed=True))
    if args.dry_run:
        return dry_run(args.settings, out, args.machine)
    if args.machine != Machine():
        raise ConfigError("the settings of --machine are for --dry-run: add it, or leave them out")
    from tastemaker.training.run import train

    train(args.settings, out, command=shlex.join(["tastemaker", "train", *argv]))
    return 0


def dry_run(config: Config, out: Path | None, machine: Machine | None = None) -> int:
    """Checks a run and prints its plan; of several processes the first one does. Raises a TastemakerError."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    from tastemaker.training.isolation import isolated
    from tastemaker.training.plan import describe, make_plan
    from tastemaker.training.preflight import preflight

    machine = checked(machine or Machine())
    with isolated():
        facts = preflight(config, out, machine.gpus or process_count())
    plan = make_plan(config, facts)
    print(describe(config, facts, plan))
    print(f"{'time':15} {time_line(config, facts, plan, machine)}")
    return 0


def checked(machine: Machine) -> Machine:
    """`machine`, if a time can be estimated for it. Raises ConfigError otherwise."""
    from tastemaker.training.cost import find_card

    if machine.measure and machine.card is not None:
        raise ConfigError(f"--machine.measure is about this machine, and --machine.card {machine.card} about another")
    if machine.card is not None:
        find_card(machine.card)
    for name, value, least in (
        ("gpus", machine.gpus, 1), ("reward-seconds", machine.reward_seconds, 0),
        ("reward-servers", machine.reward_servers, 0),
    ):  # fmt: skip
        if value is not None and not value >= least:
            raise ConfigError(f"--machine.{name} is {value}, but must be at least {least}")
    return machine


def time_line(config: Config, facts: Facts, plan: Plan, machine: Machine) -> str:
    """How long the run takes, and what that assumes; or how to find out."""
    from tastemaker.training.cost import (
        UTILISATION,
        card_named,
        counted_seconds,
        describe_cost,
        find_card,
        is_served,
        peak,
        run_cost,
    )  # fmt: skip

    servers, processes = machine.reward_servers, f"{facts.processes} process{'es' if facts.processes > 1 else ''}"
    if machine.measure:
        from tastemaker.benchmarking.probe import measure

        found = measure(config, facts.processes, machine.reward_seconds)
        # Servers that were measured were measured all together.
        servers = servers if machine.reward_seconds is not None else max(servers, 1) * is_served(config)
        assumed = f"measured here in a few calls, for {processes} like this one"
    else:
        import torch

        name = machine.card or (card_named(torch.cuda.get_device_name()) if torch.cuda.is_available() else None)
        if name is None:
            return (
                "not estimated: --machine.measure measures the pieces of a round here, --machine.card NAME assumes a "
                "GPU's peak rate"
            )
        card = find_card(name)
        found = counted_seconds(config, facts, card, machine.reward_seconds or 0.0)
        given = machine.reward_seconds
        rewards = "rewards not counted (--machine.reward-seconds)" if given is None else f"{given:g} s for a reward"
        assumed = (
            f"assumed, not measured: {processes} with {name} at {UTILISATION:.0%} of {peak(config, card):g} TFLOP/s, "
            + rewards
        )
    return describe_cost(run_cost(config, facts, plan, found, servers), assumed)
