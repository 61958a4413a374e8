"""How images are drawn, by a run's settings with flags over them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from tastemaker.config.reflection import require_finite
from tastemaker.config.schema import Sampling
from tastemaker.diffusion.sde_types import SdeType
from tastemaker.errors import ConfigError


def chosen_sampling(
    base: Sampling,
    steps: int | None,
    guidance: float | None,
    eta: float | None,
    height: int | None = None,
    width: int | None = None,
    sde_type: SdeType | None = None,
    negative_prompt: str | None = None,
) -> Sampling:
    """`base` with what was given over it. Raises ConfigError for numbers out of range."""
    given: dict[str, Any] = {
        "steps": steps, "guidance": guidance, "eta": eta, "height": height, "width": width, "sde_type": sde_type,
        "negative_prompt": negative_prompt,
    }  # fmt: skip
    sampling = replace(base, **{name: value for name, value in given.items() if value is not None})
    require_finite(sampling, "--")
    require_at_least("steps", sampling.steps, 1)
    require_at_least("eta", sampling.eta, 0)
    if sampling.negative_prompt and sampling.guidance == 1:
        raise ConfigError(
            f"--negative-prompt is {sampling.negative_prompt!r}, but the guidance is 1, which has no unconditional "
            "half: raise it by --guidance, or give --negative-prompt ''"
        )
    if sampling.steps > 1000:
        raise ConfigError(f"--steps is {sampling.steps}, but the schedule has only 1000 of them")
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
