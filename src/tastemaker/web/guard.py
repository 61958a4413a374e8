"""What is checked of every request before an application sees it, and what every response says, as ASGI."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tastemaker.web.bodies import BodyError, content_length, read_body
from tastemaker.web.hosts import host_name, is_known
from tastemaker.web.origins import is_cross_site

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

Refuse = Callable[[Scope, int, str], ASGIApp]
"""Makes the response to a request that is refused, of a status and a sentence."""


@dataclass(frozen=True)
class Guard:
    """An application that is called by its own names, and not by pages of other sites.

    Every response gets the headers, where it has no such one of its own.
    """

    app: ASGIApp
    hosts: frozenset[str] | None
    """See `hosts.known_hosts`."""
    origins: frozenset[str]
    """Origins besides the request's own host whose pages may send requests, such as that of a proxy."""
    refuse: Refuse
    headers: dict[str, str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        app, given = self.app, Headers(scope=scope)
        if not is_known(host_name(given.get("host")), self.hosts):
            text = "the server is not known by this host name: call it by the address that it printed"
            app = self.refuse(scope, 403, text)
        elif scope["method"] not in SAFE_METHODS and is_cross_site(given, self.origins):
            app = self.refuse(scope, 403, "the request comes from a page of another site")
        await app(scope, receive, _with_headers(send, self.headers))


@dataclass(frozen=True)
class LimitedBodies:
    """An application that gets bodies of requests at once, and none that are too long or do not arrive in time."""

    app: ASGIApp
    most: Callable[[Scope], int]
    """Most bytes of a request's body."""
    refuse: Refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except ClientDisconnect:
            return
        except BodyError as error:
            await self.refuse(scope, error.status, str(error))(scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        most = self.most(scope)
        too_long = BodyError(413, f"the body is too long: it may have {most} bytes")
        if (content_length(Headers(scope=scope).get("content-length")) or 0) > most:
            raise too_long
        return await read_body(_parts(receive), most, too_long)


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` for the application: the body at once, and then what else comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


def _with_headers(send: Send, headers: dict[str, str]) -> Callable[[Any], Awaitable[None]]:
    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            found = MutableHeaders(scope=message)
            for name, value in headers.items():
                found.setdefault(name, value)
        await send(message)

    return send_with
