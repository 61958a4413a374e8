"""`tastemaker label simulate`: simulated people who label a project over HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tastemaker.cli.arguments import flag_types, parse, split_assignments
from tastemaker.cli.text import as_source
from tastemaker.errors import ConfigError
from tastemaker.printing import print_lines

if TYPE_CHECKING:
    from tastemaker.labelling.simulate import Crowd, Tally


@dataclass(frozen=True)
class SimulateArgs:
    """Labels the tasks of a project that is being served, as simulated people with a hidden utility.

    They speak to the app over HTTP as browsers do. Utilities, thresholds and the temperature are in the utility's own
    unit: for `judge` the share of the prompt's attributes that an image shows, from 0 to 1.
    """

    project: Annotated[
        tyro.conf.Positional[str | None], tyro.conf.arg(metavar="PROJECT|URL", help_behavior_hint="")
    ] = None
    """The folder of a project that is served by this user, or the link of an invitation,
    http://HOST:PORT/join/TOKEN."""
    labelers: int = 5
    """Simulated labelers, who label at the same time."""
    seed: int = 0
    """Of all that they do at random."""
    votes: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: while there are tasks)")
    ] = None
    """Judgements of each labeler."""
    stay: float = 0.0
    """Seconds for which they wait for new tasks after the last, such as those of a training run."""
    utility: str = "judge"
    """What they like: `judge`, how much of the prompt an image of the bundled model's world shows, or any reward."""
    weights: tuple[str, ...] = ()
    """Weights of the judge's attributes, such as colour=2 object=1; 1 where none is given."""
    temperature: float = 0.05
    """Noise: the left image is preferred with probability sigmoid((left - right) / temperature)."""
    tie: float = 0.0
    """Images whose difference is at most this are called equal."""
    left_bias: float = 0.0
    """Added to the utility of the image on the left."""
    bad: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: none is)")] = None
    """Images below this are bad: two such are called both bad; of K such none is the best."""
    good: float = 0.5
    """Images at or above this get a thumb up."""
    skip: float = 0.0
    """Share of the tasks that are skipped."""
    undo: float = 0.0
    """Share of the answers that are taken back once and given again."""
    correct: float = 0.0
    """Share of the rankings whose whole order is arranged at the end."""
    disagreement: float = 0.0
    """Standard deviation of what each labeler thinks of an image beside the utility that all share."""
    seconds: float = 0.0
    """Median seconds before each answer."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(SimulateArgs, split_assignments(argv, flag_types(SimulateArgs)), "label simulate")
    if args.project is None:
        raise ConfigError("give a project that is being served, as in `tastemaker label simulate labels/animals`")
    for name, least in {"labelers": 1, "votes": 1, "stay": 0}.items():
        value = getattr(args, name)
        if value is not None and not value >= least:
            raise ConfigError(f"--{name} is {value}, but must be at least {least}")
    from tastemaker.labelling.taste import Behaviour, utility_of

    behaviour = Behaviour(
        args.temperature, args.tie, args.left_bias, args.bad, args.good, args.skip, args.undo, args.correct,
        args.disagreement, args.seconds,
    )  # fmt: skip
    utility = utility_of(as_source(args.utility, "--utility"), _weights(args.weights))
    from tastemaker.labelling.simulate import Tally, simulate

    crowd = _crowd(args)
    print(f"{args.labelers} simulated labelers of {crowd.url}", flush=True)
    began, tally = time.monotonic(), Tally()

    async def main() -> None:
        printing = asyncio.ensure_future(_print_progress(tally))
        try:
            await simulate(crowd, behaviour, utility, args.seed, votes=args.votes, stay=args.stay, tally=tally)
        finally:
            printing.cancel()

    with suppress(KeyboardInterrupt):
        asyncio.run(main())
    print_lines(*tally.lines(time.monotonic() - began))
    return 0


async def _print_progress(tally: Tally) -> None:
    shown = 0
    while True:
        await asyncio.sleep(5.0)
        if tally.votes != shown:
            shown = tally.votes
            print(f"{tally.votes} judgements, {tally.tasks} tasks", flush=True)


def _weights(given: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise ConfigError(f"the weight {text!r} is none: give ATTRIBUTE=NUMBER, such as colour=2") from None
    return found


def _crowd(args: SimulateArgs) -> Crowd:
    """Where the labelers go, and who they are there. Raises ConfigError."""
    from tastemaker.labelling.project import open_project
    from tastemaker.labelling.simulate import INVITATION, Crowd, invited, labeler_names, passwords

    given = str(args.project)
    if given.startswith(("http://", "https://")):
        match = INVITATION.fullmatch(given)
        if match is None:
            raise ConfigError(f"{given} is no invitation: give its whole link, http://HOST:PORT/join/TOKEN")
        # The names may be taken by those of another invitation, whose passwords differ.
        names = [f"{name} {match['token'][:6]}" for name in labeler_names(args.labelers, args.seed)]
        return Crowd(match["url"], names, passwords(match["token"], names), match["token"])
    with open_project(given) as project:
        try:
            url = str(json.loads((Path(project.folder) / "server.json").read_text(encoding="utf-8"))["url"])
        except (OSError, ValueError, TypeError, KeyError):
            raise ConfigError(
                f"{given} is not being served: start it with `tastemaker label serve {given}` beside this"
            ) from None
        return invited(project, url, args.labelers, args.seed)
