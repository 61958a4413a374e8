"""Any reward over HTTP: `tastemaker reward serve`. Its messages: protocol.py and docs/guides/remote-rewards.md."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from torch import Tensor

from tastemaker.errors import ConfigError, RewardError
from tastemaker.rewards.base import Reward, score
from tastemaker.rewards.serving.batching import Batcher
from tastemaker.rewards.serving.protocol import PROTOCOL, READ, Identity, Limits, RequestError, ScoreRequest, response
from tastemaker.rewards.serving.settings import Token

BODY_SECONDS = 60.0
"""Seconds in which a request's body must arrive."""
CONCURRENT_BODIES = 8
"""Bodies of the largest size that are read at once; further requests are refused with status 503."""


@dataclass(frozen=True)
class Service:
    """The reward that is served, and its limits."""

    reward: Reward
    identity: Identity
    token: Token | None = None
    """Without one, whoever reaches the server may use it."""
    hosts: frozenset[str] | None = None
    """Names by which the server may be called; None takes any. See `known_hosts`."""
    max_batch: int = 32
    """Most images in one call of the reward."""
    join: float = 0.005
    """Seconds for which a request waits for others to be joined with; 0 joins none."""
    limits: Limits = field(default_factory=Limits)


def known_hosts(host: str) -> frozenset[str] | None:
    """The host names under which a server bound to `host` may be called: only its own where it is on loopback.

    A web page whose name is made to resolve to 127.0.0.1 would otherwise reach it through its visitor's browser.
    """
    return frozenset({"localhost", "127.0.0.1", "::1", host}) if is_loopback(host) else None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_app(service: Service) -> FastAPI:
    """The ASGI application: GET /health, GET /info, POST /score."""

    def call(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return score(service.reward, images, prompts).total

    batcher = Batcher(call, service.max_batch, service.join, max_waiting=4 * service.limits.pixels)
    reading = _BodyReader(service.limits.body)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    # No documentation pages, since they load scripts from other servers.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 503 else {}
        headers |= {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        return JSONResponse({"detail": str(error)}, error.status, headers)

    @app.exception_handler(RewardError)
    async def failed(_: Request, error: RewardError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 500)

    @app.get("/health")
    async def health(request: Request) -> dict[str, Any]:
        check_host(request, service)
        return {"status": "ok", "waiting": batcher.waiting}

    @app.get("/info")
    async def info(request: Request) -> dict[str, Any]:
        check_host(request, service)
        check_token(request, service)
        return {
            "protocol": PROTOCOL, **asdict(service.identity), "formats": list(READ), "limits": asdict(service.limits),
            "max_batch": service.max_batch,
        }  # fmt: skip

    @app.post("/score")
    async def scored(request: Request) -> dict[str, Any]:
        check_host(request, service)
        check_token(request, service)
        content = await reading.read(request, service.limits)
        return response(await _unless_disconnected(request, batcher.submit(content)), service.identity)

    return app


def check_host(request: Request, service: Service) -> None:
    """Raises RequestError (403) for a host name that is not the server's."""
    if service.hosts is not None and request.url.hostname not in service.hosts:
        raise RequestError(403, "this server is for its own machine: call it as 127.0.0.1 or localhost")


def check_token(request: Request, service: Service) -> None:
    """Raises RequestError (401) for a missing or wrong token, in a time that does not depend on the token."""
    if service.token is None:
        return
    given = request.headers.get("authorization", "").encode("latin-1", "replace")
    if not hmac.compare_digest(given, b"Bearer " + service.token.secret.encode()):
        raise RequestError(401, "the token is missing or wrong (header `Authorization: Bearer ...`)")


class _BodyReader:
    """Reads and decodes requests, and only a few large ones at once."""

    def __init__(self, largest: int) -> None:
        self.room = CONCURRENT_BODIES * largest
        self.decoding = asyncio.Semaphore(2)

    async def read(self, request: Request, limits: Limits) -> ScoreRequest:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in READ:
            raise RequestError(415, f"the content type is {kind[:100]!r}, expected {' or '.join(READ)}")
        length = request.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise RequestError(411, "the length of the body must be given (header Content-Length)")
        size = int(length)
        if size > limits.body:
            raise RequestError(
                413, f"the body has {size} bytes, but may have {limits.body}: send fewer images at a time"
            )
        if size > self.room:
            raise RequestError(503, "too many requests are being read: try again later")
        self.room -= size
        try:
            body = await asyncio.wait_for(_body(request, size), BODY_SECONDS)
            async with self.decoding:
                return await asyncio.to_thread(READ[kind], body, limits)
        except asyncio.TimeoutError:
            raise RequestError(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from None
        finally:
            self.room += size


async def _body(request: Request, size: int) -> bytes:
    parts, had = [], 0
    async for part in request.stream():
        had += len(part)
        if had > size:
            raise RequestError(400, f"the body is longer than the {size} bytes of its Content-Length")
        parts.append(part)
    return b"".join(parts)


async def _unless_disconnected(request: Request, result: Any) -> Any:
    """The result, unless the client disconnects: its images are then not scored."""
    task = asyncio.ensure_future(result)
    try:
        while not (await asyncio.wait({task}, timeout=0.5))[0]:
            if await request.is_disconnected():
                raise RequestError(499, "the client has disconnected")
        return task.result()
    finally:
        task.cancel()


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to this address. Raises ConfigError where that fails."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen at {host} port {port}: {reason}; give another --host or --port") from error


def server(service: Service) -> uvicorn.Server:
    """The HTTP server, to be run on a socket of `listen`."""
    # uvicorn bounds the size of headers, the time a connection may idle, and the shutdown.
    config = uvicorn.Config(
        make_app(service), log_level="warning", access_log=False, server_header=False, limit_concurrency=64,
        timeout_keep_alive=30, timeout_graceful_shutdown=10, lifespan="on", ws="none",
    )  # fmt: skip
    return uvicorn.Server(config)
