"""Why something could not be had from the Hugging Face hub."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

_TRANSPORT = {"ConnectError", "NetworkError", "TransportError", "TimeoutException", "ConnectionError", "ProxyError"}
"""Names of errors of the HTTP clients, whose packages differ from version to version, and of Python's own."""


def hub_cause(error: BaseException, name: str) -> str | None:
    """The true cause of a failed download of `name` (owner/name) as a clause, or None where it is none of the hub's.

    The libraries on top of huggingface_hub replace its errors by their own, so those behind them are looked at too.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    chain = list(_chain(error))
    cache = constants.HF_HUB_CACHE
    for found in chain:
        if isinstance(found, OSError) and found.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk of the download cache {cache} is full: make room, or set HF_HOME to another disk"
        if isinstance(found, OSError) and found.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            if not str(found.filename or cache).startswith(str(constants.HF_HOME)):
                continue  # a file of the user's own
            return f"the download cache {cache} cannot be written: set HF_HOME to a folder of your own"
    for found in chain:
        if isinstance(found, HFValidationError):
            return f"{name} is not a name that the Hugging Face hub has: expected owner/name"
        if isinstance(found, GatedRepoError):
            return (
                f"access to {name} must be granted first: ask for it at https://huggingface.co/{name}, and log in with "
                "`hf auth login`"
            )
        if isinstance(found, RevisionNotFoundError):
            return f"{name} has no such revision on the Hugging Face hub"
        if isinstance(found, DisabledRepoError):
            return f"{name} was disabled on the Hugging Face hub"
        if isinstance(found, RepositoryNotFoundError):
            return (
                f"the Hugging Face hub has no repository {name}, or it is private: check the name, or log in with "
                "`hf auth login`"
            )
        if isinstance(found, RemoteEntryNotFoundError):
            address = re.search(r"url: (\S+)", str(found))
            return f"the repository {name} lacks a file that is needed ({address[1] if address else found})"
        if isinstance(found, HfHubHTTPError):
            return _refused(found, name)
    local = any(isinstance(found, LocalEntryNotFoundError) for found in chain)
    transport = next((found for found in reversed(chain) if _is_transport(found)), None)
    if any(isinstance(found, OfflineModeIsEnabled) for found in chain) or (constants.HF_HUB_OFFLINE and local):
        return (
            f"{name} is not in the download cache {cache}, and HF_HUB_OFFLINE is set: unset it, or run `hf download "
            f"{name}` where there is a network"
        )
    if transport is not None or local:
        reason = f" ({type(transport).__name__}: {_first_line(transport)})" if transport is not None else ""
        return (
            f"{name} is not in the download cache {cache}, and the Hugging Face hub could not be reached{reason}: "
            "check the network and its proxy, or give a folder"
        )
    return None


@contextmanager
def quiet_client() -> Iterator[None]:
    """Keeps the client's notes about its retries off a user's screen: the error says what came of them."""
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def is_unreachable(error: BaseException) -> bool:
    """Whether the hub did not answer at all, or with a fault of its own, so that a cached copy may be used."""
    from huggingface_hub.errors import HfHubHTTPError

    status = next((e.response.status_code for e in _chain(error) if isinstance(e, HfHubHTTPError)), None)
    return status >= 500 if status is not None else any(_is_transport(found) for found in _chain(error))


def _refused(error: BaseException, name: str) -> str:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        return (
            f"the Hugging Face hub refuses access to {name} ({status}): log in with `hf auth login`, with a token that "
            "may read it"
        )
    if status == 429:
        return "the Hugging Face hub answers 429, too many requests: wait, or log in with `hf auth login`"
    return f"the Hugging Face hub answers {status}: try again later, or give a folder"


def _is_transport(error: BaseException) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & _TRANSPORT) and not isinstance(error, HfHubHTTPError)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).strip().split("\n")[0].split())[:160]
