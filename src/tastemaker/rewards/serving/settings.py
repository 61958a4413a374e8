"""Where a remote reward is, and how it is called: the config's section `remote`. Free of torch and of HTTP.

The token is never a setting, only the name of the environment variable that holds it: a run writes its settings down.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from annotated_types import Ge, Gt

from tastemaker.constraints import check_constraints
from tastemaker.errors import ConfigError, RewardError, TastemakerError
from tastemaker.web.tokens import Token

PREFIX = "remote:"
TOKEN_ENV = "TASTEMAKER_REWARD_TOKEN"
"""The variable that both sides read a token from, where no other is named."""


@dataclass(frozen=True)
class Remote:
    """How a reward on a server is called; only for a `reward` that is a URL (docs/guides/remote-rewards.md)."""

    format: Literal["png", "safetensors"] = "png"
    """How images travel: `png`, rounded to 8 bits, or `safetensors`, exact float32 and many times larger."""
    batch: Annotated[int, Gt(0)] = 8
    """Images in one request."""
    in_flight: Annotated[int, Gt(0)] = 4
    """Requests under way at once."""
    timeout: Annotated[float, Gt(0)] = 60.0
    """Seconds that one request may take, from the first byte sent to the last one read."""
    wait: Annotated[float, Ge(0)] = 300.0
    """Seconds to wait for a server that is down, busy or silent before the run ends; 0 tries once."""
    tries: Annotated[int, Gt(0)] = 4
    """How often a request is sent where the server fails (status 500) or its response is invalid."""
    cache: Annotated[int, Ge(0)] = 4096
    """Answers kept, by image, prompt and the reward's version; 0 keeps none."""
    token_env: str = TOKEN_ENV
    """Name of the environment variable with the server's token; the token itself is never written anywhere."""

    def __post_init__(self) -> None:
        check_constraints(self, "remote.")
        check_variable("remote.token_env", self.token_env)


def check_variable(what: str, name: str) -> None:
    """Raises ConfigError for a name that no environment variable can have; the name may be a token put there."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", name):
        raise ConfigError(f"{what} is not the name of an environment variable, such as {TOKEN_ENV}, that has the token")


def read_token(name: str, usual: str = TOKEN_ENV, what: str = "reward server's token") -> Token | None:
    """The token in the environment variable of this name; None where the usual one is not set.

    Raises RewardError where a variable that was asked for is not set, or has what an HTTP header cannot carry.
    """
    secret = os.environ.get(name, "").strip()
    if not secret:
        if name == usual:
            return None
        raise RewardError(f"the environment variable {name}, which should have the {what}, is not set")
    if not re.fullmatch(r"[!-~]+", secret):
        raise RewardError(f"the token in {name} has spaces or non-ASCII characters, which an HTTP header cannot carry")
    return Token(secret)


def is_remote(name: str) -> bool:
    """Whether a reward's name is that of one on a server."""
    return name.startswith((PREFIX, "http://", "https://"))


def endpoints(name: str) -> tuple[str, ...]:
    """The servers that a reward's name lists, without a last slash: `remote:http://a:8000,http://b:8000`.

    Raises RewardError for what is not the address of a server.
    """
    return addresses(name.removeprefix(PREFIX), "reward server", TOKEN_ENV, RewardError)


def addresses(listed: str, what: str, token_env: str, error: type[TastemakerError]) -> tuple[str, ...]:
    """The different addresses of `listed`, which commas separate, without a last slash.

    Raises `error` for what is not the address of a server; `what` and `token_env` are for its message.
    """
    urls = [url.strip().rstrip("/") for url in listed.split(",")]
    for url in urls:
        _check(url, what, token_env, error)
    return tuple(dict.fromkeys(urls))


def _check(url: str, what: str, token_env: str, error: type[TastemakerError]) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as reason:
        raise error(f"the {what} {url!r} is not an address: {reason}") from reason
    if parts.username is not None or parts.password is not None:
        # Not shown: it may be a password, which also would be written to config.yaml.
        raise error(f"a {what}'s address must not hold a name or password: put a token into ${token_env} instead")
    if parts.scheme not in ("http", "https") or not host or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise error(f"the {what} {url!r} is not an address: give one such as http://127.0.0.1:8000")
    if parts.query or parts.fragment:
        raise error(f"the {what} {url!r} must have no query or fragment ('?' or '#')")
