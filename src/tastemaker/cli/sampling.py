"""How images are drawn, by a run's settings with flags over them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

import tyro

from tastemaker.cli.text import as_text
from tastemaker.config.schema import Sampling
from tastemaker.diffusion.sde_types import SdeType
from tastemaker.errors import ConfigError


def _flag(metavar: str, default: str) -> Any:
    """How a flag is shown whose default is the run's, or what the word says where there is none."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: the run's, or {default})")


@dataclass(frozen=True)
class SamplingFlags:
    """What commands and functions that make images take of the sampler; None is the run's, or the default."""

    steps: Annotated[int | None, _flag("INT", "50")] = None
    """Denoising steps."""
    guidance: Annotated[float | None, _flag("FLOAT", "5")] = None
    """Classifier-free guidance weight."""
    embedded_guidance: Annotated[float | None, _flag("FLOAT", "the model's")] = None
    """Guidance weight that the network is given as an input, of models as FLUX.1-dev."""
    negative_prompt: Annotated[str | None, _flag("TEXT", "none")] = None
    """What guidance moves away from."""
    eta: Annotated[float | None, _flag("FLOAT", "1")] = None
    """Weight of the noise added at each step."""
    sde_type: Annotated[SdeType | None, tyro.conf.arg(help_behavior_hint="(default: the run's, or auto)")] = None
    """Noise schedule: cps for flow-matching models and ddim for others, where it is auto."""
    height: Annotated[int | None, _flag("INT", "the model's")] = None
    """Height of the images in pixels."""
    width: Annotated[int | None, _flag("INT", "the model's")] = None
    """Width of the images in pixels."""


SAMPLING_FLAGS = tuple(field.name for field in fields(SamplingFlags))


def given_flags(flags: SamplingFlags) -> dict[str, Any]:
    """Those that were given, by the names of the settings. Raises ConfigError where a negative prompt is no text."""
    negative = flags.negative_prompt
    found = {
        "steps": flags.steps, "guidance": flags.guidance, "embedded_guidance": flags.embedded_guidance,
        "negative_prompt": None if negative is None else as_text(negative, "--negative-prompt"), "eta": flags.eta,
        "sde_type": flags.sde_type, "height": flags.height, "width": flags.width,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def as_flag(name: str) -> str:
    """A setting as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def chosen_sampling(base: Sampling, flags: SamplingFlags, named: Callable[[str], str] = as_flag) -> Sampling:
    """`base` with what was given over it. `named`: how a setting is written where it was given.

    Raises ConfigError for numbers out of range.
    """
    sampling = replace(base, **given_flags(flags))
    for name in ("steps", "guidance", "embedded_guidance", "eta"):
        value = vars(sampling)[name]
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"{named(name)} is {value}, but must be finite")
    for name, low in (("steps", 1), ("eta", 0)):
        if vars(sampling)[name] < low:
            raise ConfigError(f"{named(name)} is {vars(sampling)[name]}, but must be at least {low}")
    if sampling.negative_prompt and sampling.guidance == 1:
        raise ConfigError(
            f"{named('negative_prompt')} is {sampling.negative_prompt!r}, but the guidance is 1, which has no "
            f"unconditional half: raise it by {named('guidance')}, or give {named('negative_prompt')} ''"
        )
    if sampling.steps > 1000:
        raise ConfigError(f"{named('steps')} is {sampling.steps}, but the schedule has only 1000 of them")
    return sampling


def require_at_least(name: str, value: float, low: float) -> None:
    """Raises ConfigError where a flag's number is below `low`."""
    if value < low:
        raise ConfigError(f"--{name} is {value}, but must be at least {low}")


def step_mask(ranges: str, steps: int) -> tuple[bool, ...]:
    """Ranges of steps such as `0:10,15:20` as a mask [T]; a start or an end that is left out is the sampler's.

    Raises ConfigError where one is no range, empty, or reaches beyond the steps.
    """
    mask = [False] * steps
    for part in ranges.split(","):
        match = re.fullmatch(r"\s*(\d*):(\d*)\s*", part)
        if match is None:
            raise ConfigError(
                f"--adapter-steps is {ranges!r}, but must be ranges of steps from 0 to {steps}, such as "
                f"0:{max(1, steps // 2)}, with commas in between"
            )
        start, end = int(match[1] or 0), int(match[2] or steps)
        if not start < end <= steps:
            raise ConfigError(
                f"--adapter-steps has the range {part.strip()}, but of {steps} steps a range goes from 0 at the least "
                f"to {steps} at the most, and its end is larger than its start"
            )
        mask[start:end] = [True] * (end - start)
    return tuple(mask)
