"""Any reward over HTTP: `tastemaker reward serve`. Its messages: protocol.py and docs/guides/remote-rewards.md."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from torch import Tensor

from tastemaker.errors import RewardError
from tastemaker.rewards.base import Reward, score
from tastemaker.rewards.serving.batching import Batcher
from tastemaker.rewards.serving.protocol import PROTOCOL, READ, Identity, Limits, RequestError, ScoreRequest, response
from tastemaker.web.bodies import BodyError, content_length, read_body
from tastemaker.web.hosts import host_name, is_known
from tastemaker.web.listening import http_server
from tastemaker.web.tokens import Token, is_bearer

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
    """Names by which the server may be called; None takes any. See `web.hosts.known_hosts`."""
    max_batch: int = 32
    """Most images in one call of the reward."""
    join: float = 0.005
    """Seconds for which a request waits for others to be joined with; 0 joins none."""
    limits: Limits = field(default_factory=Limits)


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
    if not is_known(host_name(request.headers.get("host")), service.hosts):
        raise RequestError(403, "this server is for its own machine: call it as 127.0.0.1 or localhost")


def check_token(request: Request, service: Service) -> None:
    """Raises RequestError (401) for a missing or wrong token, in a time that does not depend on the token."""
    if service.token is None:
        return
    if not is_bearer(request.headers.get("authorization"), service.token):
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
        size = content_length(request.headers.get("content-length"))
        if size is None:
            raise RequestError(411, "the length of the body must be given (header Content-Length)")
        if size > limits.body:
            raise RequestError(
                413, f"the body has {size} bytes, but may have {limits.body}: send fewer images at a time"
            )
        if size > self.room:
            raise RequestError(503, "too many requests are being read: try again later")
        self.room -= size
        try:
            too_long = BodyError(400, f"the body is longer than the {size} bytes of its Content-Length")
            body = await read_body(request.stream(), size, too_long)
            async with self.decoding:
                return await asyncio.to_thread(READ[kind], body, limits)
        except BodyError as error:
            raise RequestError(error.status, str(error)) from None
        finally:
            self.room += size


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


def server(service: Service) -> uvicorn.Server:
    """The HTTP server, to be run on a socket of `listen`."""
    return http_server(make_app(service), limit_concurrency=64)
