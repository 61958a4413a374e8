"""Requests to servers that may be down, slow or faulty: retries, pauses and failover, in bounded time.

Requests are cancelled through anyio only: asyncio's own cancellation interrupts the closing of connections, which
httpx shields from anyio's alone, and would leave sockets open.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar

import anyio
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from tastemaker.errors import RewardError, RewardUnavailable, TastemakerError
from tastemaker.web.tokens import Token

T = TypeVar("T")

BUSY = (408, 425, 429, 499, 502, 503, 504)
"""Statuses that are temporary and not caused by the request."""
AVOID = 15.0
"""Seconds for which other servers are preferred to one that failed."""
CONNECT = 10.0
"""Most seconds for establishing a connection."""
_JITTER = random.Random()
"""A generator of its own, so that waiting changes no random number of a run."""


class TransientError(Exception):
    """A failure that a retry may cure: no response, an error of the server, or a response that is invalid."""

    def __init__(self, text: str, kind: Literal["unreachable", "failed", "invalid"], retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.kind, self.retry_after = kind, retry_after


@dataclass
class Servers:
    """Which server the next request goes to: in turn, those that have not just failed."""

    urls: tuple[str, ...]
    avoided: dict[str, float] = field(default_factory=dict)
    """Until when, by the monotonic clock."""
    turn: int = 0

    def pick(self) -> str:
        """The next server that has not failed lately, or the one whose failure is longest ago."""
        self.turn += 1
        order = [self.urls[(self.turn + offset) % len(self.urls)] for offset in range(len(self.urls))]
        now = time.monotonic()
        return min(order, key=lambda url: max(self.avoided.get(url, 0.0), now))

    def any_available(self) -> bool:
        return any(self.avoided.get(url, 0.0) <= time.monotonic() for url in self.urls)


@dataclass
class RetryPolicy:
    """Repeats a request until it succeeds: for at most `wait` seconds, and `tries` times where servers respond."""

    failure: str
    """What has failed when it gives up, for messages: `the reward NAME gave no numbers`."""
    servers: Servers
    wait: float
    tries: int
    log: Callable[[str], None]
    setting: str
    """The setting of the config that is `wait`, by its full name."""
    invalid: type[TastemakerError] = RewardError
    """What is raised where the last response was invalid."""
    unavailable: type[TastemakerError] = RewardUnavailable
    """What is raised where no server recovered in time."""
    outage: bool = False

    async def run(self, attempt: Callable[[str], Awaitable[T]]) -> T:
        """The result of `attempt`, which is given a server's URL and raises TransientError to be tried again.

        Raises `unavailable` where no server recovers in time, `invalid` where the last response was invalid.
        """
        start, responses, tries = time.monotonic(), 0, 0

        def _should_stop(state: RetryCallState) -> bool:
            nonlocal responses
            error = state.outcome.exception() if state.outcome else None
            responses += isinstance(error, TransientError) and error.kind != "unreachable"
            late = time.monotonic() - start + state.upcoming_sleep > self.wait
            return late or responses >= self.tries

        try:
            async for trial in AsyncRetrying(
                retry=retry_if_exception_type(TransientError),
                wait=self._pause,
                stop=_should_stop,
                before_sleep=self._log_outage,
                reraise=True,
            ):
                with trial:
                    tries += 1
                    return await self._attempt_at(self.servers.pick(), attempt)
        except TransientError as error:
            spent = f"{tries} {'try' if tries == 1 else 'tries'} in {time.monotonic() - start:.0f} s"
            kind = self.invalid if error.kind == "invalid" else self.unavailable
            hint = f" (is it running? `{self.setting}` is how long to wait for it)"
            hint = hint if error.kind == "unreachable" else ""
            raise kind(f"{self.failure} after {spent}: {error}{hint}") from None
        raise AssertionError  # the loop returns or raises

    async def _attempt_at(self, server: str, attempt: Callable[[str], Awaitable[T]]) -> T:
        try:
            value = await attempt(server)
        except TransientError:
            self.servers.avoided[server] = time.monotonic() + AVOID
            raise
        self.servers.avoided.pop(server, None)
        if self.outage:
            self.outage = False
            self.log(f"the server {server} answers again")
        return value

    def _pause(self, state: RetryCallState) -> float:
        """Seconds before the next try: none where another server has not failed lately."""
        error = state.outcome.exception() if state.outcome else None
        if len(self.servers.urls) > 1 and self.servers.any_available():
            return 0.0
        return max(backoff(state.attempt_number), error.retry_after if isinstance(error, TransientError) else 0.0)

    def _log_outage(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if not self.outage:
            self.outage = True
            self.log(f"the server {error}; trying again, for up to {self.wait:g} s")


class CancellableCall:
    """Runs a coroutine from synchronous code in a loop of its own; `cancel` ends it from another thread."""

    def __init__(self, caller: str) -> None:
        self.caller = caller
        self._running: tuple[asyncio.AbstractEventLoop, anyio.CancelScope] | None = None

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of the coroutine. Raises RewardUnavailable where it was cancelled."""

        async def main() -> T:
            with anyio.CancelScope() as scope:
                self._running = asyncio.get_running_loop(), scope
                try:
                    return await work()
                finally:
                    self._running = None
            raise RewardUnavailable(f"the call of {self.caller} was cancelled")

        if not _event_loop_is_running():
            return anyio.run(main)
        with ThreadPoolExecutor(1) as thread:  # a notebook
            return thread.submit(anyio.run, main).result()

    def cancel(self) -> None:
        """Ends the call under way in another thread, if there is one."""
        running = self._running
        if running is not None:
            try:
                running[0].call_soon_threadsafe(running[1].cancel)
            except RuntimeError:  # its loop has just closed
                return


async def gather_all(work: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """The results of coroutines that run concurrently, in their order.

    Where one fails or this is cancelled, the others are ended first. Raises what the first to fail has raised.
    """
    found: dict[int, T] = {}
    failed: list[Exception] = []

    async def one(index: int, make: Callable[[], Awaitable[T]]) -> None:
        try:
            found[index] = await make()
        except Exception as error:
            failed.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for index, make in enumerate(work):
            group.start_soon(one, index, make)
    if failed:
        raise failed[0]
    return [found[index] for index in sorted(found)]


def backoff(tries: int) -> float:
    """Seconds to wait after this many tries: 0.25, 0.5, 1, ... up to 10, and up to half as much again at random."""
    return min(0.25 * 2 ** min(tries - 1, 10), 10.0) * (1 + 0.5 * _JITTER.random())


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date, in [0, 60]; 0 without one."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value) if value.isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), 60.0)


def sanitized(text: Any, token: Token | None) -> str:
    """A server's text in one line of at most 300 characters, without the token."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    safe = line if token is None else token.hidden(line)
    return safe if len(safe) <= 300 else safe[:297] + "..."


def _event_loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
