"""`tastemaker doctor --reward NAME`: whether a reward meets its contract, with a line for each part of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from tastemaker.cli.arguments import flag_types, parse, split_assignments
from tastemaker.cli.text import as_source
from tastemaker.errors import ConfigError
from tastemaker.rewards.expression import parse as parse_reward
from tastemaker.rewards.expression import parts
from tastemaker.rewards.labelers.settings import Labelers, is_label
from tastemaker.rewards.serving.settings import Remote
from tastemaker.rewards.vlm.settings import Vlm


@dataclass(frozen=True)
class DoctorArgs:
    """Checks a reward against its contract on synthetic images, and prints a line for each part.

    Exit code 0, or 1 where a part is broken.
    """

    reward: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """Any reward that a run takes: built in, an entry point's, `module:function`, or the URL of a server."""
    prompts: str = "bundled-single"
    """Where prompts are taken from: what `--prompts` of a run takes."""
    batch: int = 6
    """Images."""
    size: int = 64
    """Their side in pixels."""
    remote: Remote = field(default_factory=lambda: Remote(wait=10.0))
    """How a reward on a server is called; its cache is off."""
    vlm: Vlm = field(default_factory=lambda: Vlm(wait=10.0))
    """How a vision-language model is called; its cache is off."""
    labelers: Labelers = field(default_factory=lambda: Labelers(server_wait=10.0))
    """How a labelling app is called; its labelers are not asked."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(DoctorArgs, split_assignments(argv, flag_types(DoctorArgs)), "doctor")
    if not 2 <= args.batch <= 1024:
        raise ConfigError(f"--batch is {args.batch}, but must lie in [2, 1024]")
    if not 8 <= args.size <= 4096:
        raise ConfigError(f"--size is {args.size}, but must lie in [8, 4096]")
    from tastemaker.data.prompts import load_prompts
    from tastemaker.rewards.check import check_reward
    from tastemaker.rewards.registry import load_reward

    name = as_source(args.reward, "--reward")
    if asked := [part for part in parts(parse_reward(name)) if is_label(part)]:
        return _people(asked, args.labelers)
    known = load_prompts(as_source(args.prompts, "--prompts"))
    prompts = [known.prompts[index] for index in known.spread(args.batch)]
    # A cache would make any reward deterministic.
    reward = load_reward(name, replace(args.remote, cache=0), vlm=replace(args.vlm, cache=0))
    broken = 0
    for finding in check_reward(reward, (prompts * args.batch)[: args.batch], args.size):
        broken += finding.state == "failed"
        print(f"{finding.state:8} {finding.what}", flush=True)
    if broken:
        print(f"\n{args.reward}: {broken} {'part' if broken == 1 else 'parts'} of the contract broken.")
    return 1 if broken else 0


def _people(names: list[str], settings: Labelers) -> int:
    """What labelling projects there are: synthetic images are no work for people."""
    from tastemaker.rewards.labelers.reward import LabelersReward
    from tastemaker.rewards.labelers.settings import least_size

    for name in names:
        project = LabelersReward(name, settings).project()
        least, most = least_size(project.mode), project.images
        size = f"{most}" if least == most else f"{least} to {most}"
        print(f"ok       {name} answers: {project.title!r}, {project}, {project.overlap} labelers for each task")
        print(f"note     a run needs {size} images of each prompt in a task (sampling.per_prompt)")
        print("note     no image is put before labelers here")
    return 0
