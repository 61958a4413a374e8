"""How a benchmark's vision-language model is called: the flags `--vlm.*`. Free of torch and of HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from tastemaker.constraints import check_constraints
from tastemaker.rewards.serving.settings import check_variable
from tastemaker.rewards.vlm.settings import KEY_ENV, Vlm

JUDGE = "judge"
"""The bundled world's judge, in the place of a model's name."""
SETTINGS = "benchmark.json"
"""The file of a folder that says what its answers depend on."""
TEXT_MODEL = "sentence-transformers/all-mpnet-base-v2"
"""The sentence encoder of TIFA."""
WRITTEN = "--written"
"""The flag that does without probabilities."""


@dataclass(frozen=True)
class Calls:
    """How the vision-language model is called."""

    tokens: Annotated[int, Gt(0)] = Vlm.tokens
    """Longest answer."""
    batch: Annotated[int, Gt(0)] = Vlm.batch
    """Images at once of a model in this process; with more, answers may depend on the batch where two are close."""
    in_flight: Annotated[int, Gt(0)] = Vlm.in_flight
    """Requests under way at once, each of one image."""
    timeout: Annotated[float, Gt(0)] = Vlm.timeout
    """Seconds that one request may take."""
    wait: Annotated[float, Ge(0)] = Vlm.wait
    """Seconds to wait for a server that is down, busy or silent before the command ends; 0 tries once."""
    tries: Annotated[int, Gt(0)] = Vlm.tries
    """How often a request is sent where the server fails (status 500) or its answer cannot be read."""
    key_env: str = KEY_ENV
    """Name of the environment variable with the server's key; the key itself is never written anywhere."""

    def __post_init__(self) -> None:
        check_constraints(self, "vlm.")
        check_variable("vlm.key_env", self.key_env)

    def settings(self) -> Vlm:
        """As the rewards call such models."""
        return Vlm(
            tokens=self.tokens, batch=self.batch, in_flight=self.in_flight, timeout=self.timeout, wait=self.wait,
            tries=self.tries, key_env=self.key_env,
        )  # fmt: skip
