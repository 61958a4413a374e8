"""How a rollout engine is called: the config's section `rollout_engine`. Free of torch and of HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from tastemaker.constraints import check_constraints
from tastemaker.errors import ConfigError
from tastemaker.rewards.serving.settings import addresses, check_variable

TOKEN_ENV = "TASTEMAKER_ENGINE_TOKEN"
"""The variable that the engines' token is read from, where no other is named."""


@dataclass(frozen=True)
class RolloutEngine:
    """How images are requested of the engines in `sampling.engine` (docs/guides/rollout-engine.md)."""

    folder: str | None = None
    """Folder for the adapters, which this machine and the engines must see under the same path."""
    in_flight: Annotated[int, Gt(0)] = 8
    """Requests under way at once, each for one image, over all engines."""
    timeout: Annotated[float, Gt(0)] = 600.0
    """Seconds that one request may take, from the first byte sent to the last one read."""
    wait: Annotated[float, Ge(0)] = 300.0
    """Seconds to wait for an engine that is down, busy or silent before the run ends; 0 tries once."""
    tries: Annotated[int, Gt(0)] = 3
    """How often a request is sent where the engine fails (status 500) or its response is invalid."""
    ratio_bound: Annotated[float, Gt(0)] = 1e-3
    """Largest |ratio - 1| between the likelihood of a step as computed here and as the engine reports it, before any
    update. Both are exp of the mean log-probability over a latent's elements, whatever `sampling.log_prob` is."""
    token_env: str = TOKEN_ENV
    """Name of the environment variable with the engines' token; the token itself is never written anywhere."""

    def __post_init__(self) -> None:
        check_constraints(self, "rollout_engine.")
        check_variable("rollout_engine.token_env", self.token_env)


def engine_addresses(given: str) -> tuple[str, ...]:
    """The engines that `sampling.engine` lists, separated by commas. Raises ConfigError for what is no address."""
    return addresses(given, "rollout engine", TOKEN_ENV, ConfigError)
