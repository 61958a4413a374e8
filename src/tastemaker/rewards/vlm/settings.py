"""Which vision-language model a reward calls, and how: the config's section `vlm`. Free of torch and of HTTP.

The key is never a setting, only the name of the environment variable that holds it: a run writes its settings down.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt

from tastemaker.constraints import check_constraints
from tastemaker.errors import ConfigError, RewardError
from tastemaker.rewards.serving.settings import check_variable, endpoints, read_token
from tastemaker.web.tokens import Token

KEY_ENV = "TASTEMAKER_VLM_KEY"
"""The variable that a server's key is read from, where no other is named."""
NAMES = ("vlm-bertscore", "vlm-yes-no", "vlm-rating", "vlm-strict")
"""The rewards that call a vision-language model."""
PROMPT = "{prompt}"
"""What a question has where an image's prompt belongs."""
FREE = ("in_flight", "timeout", "wait", "tries", "cache", "key_env")
"""Settings that change no reward, and may differ when a run is resumed."""


@dataclass(frozen=True)
class Vlm:
    """How a vision-language model is called; only for a `reward` that begins with vlm- (docs/guides/vlm-rewards.md)."""

    question: str | None = None
    """The question about each image, with {prompt} where its prompt belongs; the reward's own when left out."""
    questions: str | None = None
    """`vlm-strict`: a .jsonl file of prompts with their questions and the answers expected; by default prompts are
    taken as a number and a noun, as in `two cats`."""
    scale: tuple[int, int] = (1, 5)
    """`vlm-rating`: lowest and highest rating. Up to 9, a rating is the mean over the probabilities of the
    numbers."""
    logprobs: bool = True
    """`vlm-yes-no`, `vlm-rating`: use the probabilities of the answer's tokens where the model gives them; false takes
    the answer as it is written."""
    tokens: Annotated[int, Gt(0)] = 64
    """Longest answer."""
    text_model: str = "microsoft/deberta-xlarge-mnli"
    """`vlm-bertscore`: the encoder that compares answer and prompt, a folder or a name on the Hugging Face hub."""
    text_layer: Annotated[int, Ge(0)] | None = None
    """`vlm-bertscore`: which of its layers; the one that BERTScore uses for this model when left out."""
    batch: Annotated[int, Gt(0)] = 1
    """Images at once of a model in this process; with more, answers may depend on the batch where two are close."""
    in_flight: Annotated[int, Gt(0)] = 16
    """Requests under way at once, each of one image."""
    timeout: Annotated[float, Gt(0)] = 120.0
    """Seconds that one request may take."""
    wait: Annotated[float, Ge(0)] = 300.0
    """Seconds to wait for a server that is down, busy or silent before the run ends; 0 tries once."""
    tries: Annotated[int, Gt(0)] = 4
    """How often a request is sent where the server fails (status 500) or its answer cannot be read."""
    cache: Annotated[int, Ge(0)] = 4096
    """Answers kept, by image and question; 0 keeps none."""
    key_env: str = KEY_ENV
    """Name of the environment variable with the server's key; the key itself is never written anywhere."""

    def __post_init__(self) -> None:
        check_constraints(self, "vlm.")
        low, high = self.scale
        if not 0 <= low < high:
            raise ConfigError(f"vlm.scale is {low} to {high}, but must rise from a number that is not negative")
        check_variable("vlm.key_env", self.key_env)

    @property
    def figures(self) -> dict[str, Any]:
        """The settings that the rewards depend on, as JSON."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}


@dataclass(frozen=True)
class ModelAddress:
    """A model, and the servers that have it; without any it is loaded in this process."""

    model: str
    urls: tuple[str, ...] = ()


def is_vlm(name: str) -> bool:
    """Whether a reward of this name calls a vision-language model."""
    return name.partition(":")[0] in NAMES


def parse_address(argument: str) -> ModelAddress:
    """What follows a reward's name: `MODEL`, `MODEL@http://HOST:PORT/v1`, or the same with several addresses.

    Raises RewardError for what is neither.
    """
    match = re.fullmatch(r"(?:(?P<model>.*?)@)?(?P<urls>https?://.*)", argument, re.DOTALL)
    if match is None:
        return ModelAddress(argument)
    if not match["model"]:
        raise RewardError(f"{argument} names a server but no model: give MODEL@{argument.lstrip('@')}")
    return ModelAddress(match["model"], endpoints(match["urls"]))


def without_servers(name: str) -> str:
    """A reward's name without the addresses in it, which may change while the reward stays the same."""
    first, _, argument = name.partition(":")
    return f"{first}:{parse_address(argument).model}" if is_vlm(name) and argument else name


def read_key(name: str) -> Token | None:
    """The key in the environment variable of this name; None where the usual one is not set. Raises RewardError."""
    return read_token(name, KEY_ENV, "VLM server's key")
