"""Any reward over HTTP: `tastemaker reward serve`. Its messages: protocol.py and docs/guides/remote-rewards.md."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import hmac
import inspect
import ipaddress
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

import tastemaker
from tastemaker.errors import ConfigError, RewardError
from tastemaker.rewards.base import Reward, score
from tastemaker.rewards.combination import Combination
from tastemaker.rewards.expression import written
from tastemaker.rewards.serving.batching import Batcher
from tastemaker.rewards.serving.protocol import PROTOCOL, READ, Identity, Limits, RequestError, ScoreRequest, answer
from tastemaker.rewards.serving.settings import Token
from tastemaker.rewards.vlm.settings import is_vlm, without_servers

BODY_SECONDS = 60.0
"""A request's body must have come by then."""
READING = 8
"""Bodies of the largest size that are read at once; more are told to come back."""


@dataclass(frozen=True)
class Service:
    """What is served, and within which limits."""

    reward: Reward
    identity: Identity
    token: Token | None = None
    """Without one, whoever reaches the server may ask."""
    hosts: frozenset[str] | None = None
    """Names by which the server may be called; None takes any. See `known_hosts`."""
    max_batch: int = 32
    """Most images in one call of the reward."""
    join: float = 0.005
    """Seconds for which a request waits for others to be joined with; 0 joins none."""
    limits: Limits = field(default_factory=Limits)


def identify(name: str, reward: Reward) -> Identity:
    """Name and version of a reward: tastemaker's own, with a hash of the source it is written in, and of its file.

    Those of a combination are made of its parts'.
    """
    digest = hashlib.sha256()
    if isinstance(reward, Combination):
        parts = {part: identify(part, function) for part, function in reward.rewards.items()}
        digest.update(Path(inspect.getfile(Combination)).read_bytes())
        digest.update(" ".join(one.version for one in parts.values()).encode())
        shown = written(reward.tree, lambda part: parts[part].reward)
        return Identity(shown, f"{tastemaker.__version__}+{digest.hexdigest()[:12]}")
    with suppress(TypeError, OSError):  # a callable without a source of its own
        digest.update(Path(inspect.getsourcefile(_function(reward)) or "").read_bytes())
    if is_vlm(name):
        # Where it is asked is nobody's business, and may change.
        name = without_servers(name)
        digest.update(json.dumps(getattr(reward, "figures", {}), sort_keys=True).encode())
    first, _, argument = name.partition(":")
    with suppress(OSError, ValueError):
        digest.update(Path(argument).expanduser().read_bytes())
    # Not the argument itself: it may be a path, which is nobody's business.
    shown = f"{first}:{Path(argument).name}" if "/" in argument else name
    return Identity(shown, f"{tastemaker.__version__}+{digest.hexdigest()[:12]}")


def _function(reward: Any) -> Any:
    return inspect.unwrap(reward) if inspect.isroutine(reward) else type(reward)


def known_hosts(host: str) -> frozenset[str] | None:
    """The names for a server bound to `host`: only its own where that is this machine alone.

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
    reward_score = functools.partial(score, service.reward)
    batcher = Batcher(reward_score, service.max_batch, service.join, room=4 * service.limits.pixels)
    reading = _Reading(service.limits.body)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    # No pages of documentation: they would load scripts from elsewhere.
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
        asked = await reading.read(request, service.limits)
        return answer(await _unless_left(request, batcher.ask(asked)), service.identity)

    return app


def check_host(request: Request, service: Service) -> None:
    """Raises RequestError (403) for a name that the server is not known by."""
    if service.hosts is not None and request.url.hostname not in service.hosts:
        raise RequestError(403, "this server is for its own machine: call it by 127.0.0.1 or localhost")


def check_token(request: Request, service: Service) -> None:
    """Raises RequestError (401) for a missing or wrong token. The time it takes tells nothing of the token."""
    if service.token is None:
        return
    given = request.headers.get("authorization", "").encode("latin-1", "replace")
    if not hmac.compare_digest(given, b"Bearer " + service.token.secret.encode()):
        raise RequestError(401, "a token is needed, and none or another was given (header `Authorization: Bearer ...`)")


class _Reading:
    """Reads and decodes requests, few large ones at once."""

    def __init__(self, largest: int) -> None:
        self.room = READING * largest
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
            raise RequestError(408, f"the body did not come within {BODY_SECONDS:.0f} s") from None
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


async def _unless_left(request: Request, asking: Any) -> Any:
    """The answer, unless who asked hangs up: what nobody waits for any more is not scored."""
    task = asyncio.ensure_future(asking)
    try:
        while not (await asyncio.wait({task}, timeout=0.5))[0]:
            if await request.is_disconnected():
                raise RequestError(499, "the client has left")
        return task.result()
    finally:
        task.cancel()


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to this address. Raises ConfigError where it cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen at {host} port {port}: {reason}; give another --host or --port") from error


def server(service: Service) -> uvicorn.Server:
    """The HTTP server, to be run on a socket of `listen`."""
    # A header's size, the time a connection may idle and the end are bounded by uvicorn.
    config = uvicorn.Config(
        make_app(service), log_level="warning", access_log=False, server_header=False, limit_concurrency=64,
        timeout_keep_alive=30, timeout_graceful_shutdown=10, lifespan="on", ws="none",
    )  # fmt: skip
    return uvicorn.Server(config)
