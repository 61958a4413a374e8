"""Asking servers that may be down, slow or talk nonsense: tries, pauses and failover, in waiting that always ends.

Requests are ended by anyio's cancellation alone: asyncio's own breaks into the closing of connections, which httpx
shields from anyio's only, and leaves sockets open.
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

from tastemaker.errors import RewardError, RewardUnavailable
from tastemaker.rewards.serving.settings import Token

T = TypeVar("T")

BUSY = (408, 425, 429, 499, 502, 503, 504)
"""Statuses that say nothing of the request, and pass."""
AVOID = 15.0
"""Seconds for which other servers are preferred to one that failed."""
CONNECT = 10.0
"""Most seconds for a connection to come about."""
_DICE = random.Random()
"""Its own, so that waiting changes no random number of a run."""


class TransientError(Exception):
    """What may be gone when tried again: nobody answered, the server failed, or its answer is none."""

    def __init__(self, text: str, kind: Literal["silent", "failed", "nonsense"], after: float = 0.0) -> None:
        super().__init__(text)
        self.kind, self.after = kind, after


@dataclass
class Servers:
    """Which server is asked next: one that has not just failed, in turn."""

    urls: tuple[str, ...]
    avoided: dict[str, float] = field(default_factory=dict)
    """Until when, by the monotonic clock."""
    turn: int = 0

    def pick(self) -> str:
        """The next of those that have not failed of late, or the one whose failure is longest ago."""
        self.turn += 1
        order = [self.urls[(self.turn + place) % len(self.urls)] for place in range(len(self.urls))]
        now = time.monotonic()
        return min(order, key=lambda url: max(self.avoided.get(url, 0.0), now))

    def any_fresh(self) -> bool:
        return any(self.avoided.get(url, 0.0) <= time.monotonic() for url in self.urls)


@dataclass
class Waiting:
    """Asks servers until one gives a value: for `wait` seconds, and `tries` times where one answers amiss."""

    reward: str
    """Its name, for what is said and raised."""
    servers: Servers
    wait: float
    tries: int
    say: Callable[[str], None]
    section: str
    """Where `wait` is set."""
    outage: bool = False

    async def ask(self, once: Callable[[str], Awaitable[T]]) -> T:
        """What `once` makes of a server's answer; it raises TransientError where it is to be tried again.

        Raises RewardUnavailable where none gets well in time, RewardError where the last answer was nonsense.
        """
        began, answered, tries = time.monotonic(), 0, 0

        def _over(state: RetryCallState) -> bool:
            nonlocal answered
            error = state.outcome.exception() if state.outcome else None
            answered += isinstance(error, TransientError) and error.kind != "silent"
            late = time.monotonic() - began + state.upcoming_sleep > self.wait
            return late or answered >= self.tries

        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(TransientError),
                wait=self._pause,
                stop=_over,
                before_sleep=self._tell,
                reraise=True,
            ):
                with attempt:
                    tries += 1
                    return await self._at(self.servers.pick(), once)
        except TransientError as error:
            spent = f"{tries} {'try' if tries == 1 else 'tries'} in {time.monotonic() - began:.0f} s"
            kind = RewardError if error.kind == "nonsense" else RewardUnavailable
            how_long = f" (is it running? `{self.section}.wait` is how long it is waited for)"
            mend = how_long if error.kind == "silent" else ""
            raise kind(f"the reward {self.reward} gave no numbers after {spent}: {error}{mend}") from None
        raise AssertionError  # the loop returns or raises

    async def _at(self, server: str, once: Callable[[str], Awaitable[T]]) -> T:
        try:
            value = await once(server)
        except TransientError:
            self.servers.avoided[server] = time.monotonic() + AVOID
            raise
        self.servers.avoided.pop(server, None)
        if self.outage:
            self.outage = False
            self.say(f"the reward server {server} answers again")
        return value

    def _pause(self, state: RetryCallState) -> float:
        """Seconds before the next try: none where another server has not failed of late."""
        error = state.outcome.exception() if state.outcome else None
        if len(self.servers.urls) > 1 and self.servers.any_fresh():
            return 0.0
        return max(backoff(state.attempt_number), error.after if isinstance(error, TransientError) else 0.0)

    def _tell(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if not self.outage:
            self.outage = True
            self.say(f"the reward server {error}; trying again, for up to {self.wait:g} s")


class Calls:
    """Runs coroutines for plain code, in a loop of their own; `cancel` ends the one that another thread waits for."""

    def __init__(self, reward: str) -> None:
        self.reward = reward
        self._running: tuple[asyncio.AbstractEventLoop, anyio.CancelScope] | None = None

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """What the work gives. Raises RewardUnavailable where it was cancelled."""

        async def main() -> T:
            with anyio.CancelScope() as scope:
                self._running = asyncio.get_running_loop(), scope
                try:
                    return await work()
                finally:
                    self._running = None
            raise RewardUnavailable(f"the reward {self.reward} was not waited for any longer")

        if not _inside_a_loop():
            return anyio.run(main)
        with ThreadPoolExecutor(1) as thread:  # a notebook
            return thread.submit(anyio.run, main).result()

    def cancel(self) -> None:
        """Ends the call that is under way in another thread, if one is."""
        running = self._running
        if running is not None:
            try:
                running[0].call_soon_threadsafe(running[1].cancel)
            except RuntimeError:  # its loop has just closed
                return


async def together(work: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """What each of them gives, side by side; where one fails or this is cancelled, the others are ended first.

    Raises what the first that failed has raised.
    """
    found: dict[int, T] = {}
    failed: list[Exception] = []

    async def one(place: int, ask: Callable[[], Awaitable[T]]) -> None:
        try:
            found[place] = await ask()
        except Exception as error:
            failed.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for place, ask in enumerate(work):
            group.start_soon(one, place, ask)
    if failed:
        raise failed[0]
    return [found[place] for place in sorted(found)]


def backoff(tries: int) -> float:
    """Seconds to wait after so many tries: 0.25, 0.5, 1, ... up to 10, and up to half as much again at random."""
    return min(0.25 * 2 ** min(tries - 1, 10), 10.0) * (1 + 0.5 * _DICE.random())


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date, in [0, 60]; 0 without one."""
    told = headers.get("retry-after", "").strip()
    try:
        seconds = float(told) if told.isdigit() else parsedate_to_datetime(told).timestamp() - time.time()
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), 60.0)


def shown(text: Any, token: Token | None) -> str:
    """A server's words in one line, not long, and without the token."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    safe = line if token is None else token.hidden(line)
    return safe if len(safe) <= 300 else safe[:297] + "..."


def _inside_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
