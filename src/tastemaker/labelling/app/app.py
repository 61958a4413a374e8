"""The ASGI application of the labelling app."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tastemaker.errors import StorageError
from tastemaker.labelling.app import batches
from tastemaker.labelling.app.access import AccessControl, access, check_declared
from tastemaker.labelling.app.admin import add_admin
from tastemaker.labelling.app.api import add_api
from tastemaker.labelling.app.context import Context
from tastemaker.labelling.app.pages import add_pages
from tastemaker.labelling.app.refusals import is_api, refuse
from tastemaker.labelling.project import Project
from tastemaker.rewards.serving.protocol import JSON, READ
from tastemaker.web.guard import SAFE_METHODS, Guard, LimitedBodies
from tastemaker.web.hosts import known_hosts
from tastemaker.web.origins import SECURITY_HEADERS
from tastemaker.web.tokens import Token

BODY = 256 * 1024
"""Most bytes of a request's body."""
RELEASE = "/api/assignments/release"
MOST_ERRORS = 20
"""Most mistakes of one request that are listed."""


def make_app(
    project: Project,
    token: Token,
    *,
    hosts: frozenset[str] | None = known_hosts("127.0.0.1"),
    public_url: str | None = None,
) -> FastAPI:
    """The labelling app of an open project.

    `token` is the administrator's. `hosts` are the names by which it may be called, None for any (`web.hosts`).
    `public_url` is where a proxy shows it, such as https://labels.example.org; with https, cookies are for https alone.
    """
    context = Context(project, token, secure=public_url is not None and public_url.startswith("https:"),
                      address=public_url)  # fmt: skip
    # No documentation pages, since they load scripts from other servers.
    app = FastAPI(title="Tastemaker labelling", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.context = context
    _add_basics(app)
    add_pages(app, context)
    add_api(app, context)
    batches.add_batches(app, context)
    add_admin(app, context)
    _add_errors(app)
    # The first to be added is the last to be called: bodies are read of those alone who may send them.
    app.add_middleware(LimitedBodies, most=_most_bytes, refuse=refuse)
    app.add_middleware(_ContentTypes)
    app.add_middleware(AccessControl, routes=app.routes, context=context)
    app.add_middleware(
        Guard, hosts=hosts, origins=frozenset({public_url} if public_url else ()), refuse=refuse,
        headers=SECURITY_HEADERS,
    )  # fmt: skip
    check_declared(app)
    return app


def _most_bytes(scope: Scope) -> int:
    return batches.LIMITS.body if scope["path"] == batches.PATH else BODY


def _add_basics(app: FastAPI) -> None:
    @app.get("/health", **access("anonymous"))
    def health() -> dict[str, str]:
        """Whether the server is there."""
        return {"status": "ok"}

    @app.get("/openapi.json", **access("admin"), include_in_schema=False)
    def openapi() -> dict[str, Any]:
        return _with_security(app.openapi())


def _with_security(schema: dict[str, Any]) -> dict[str, Any]:
    schema.setdefault("components", {})["securitySchemes"] = {
        "session": {"type": "apiKey", "in": "cookie", "name": "session"},
        "token": {"type": "http", "scheme": "bearer"},
    }
    return schema


# ---------------------------------------------------------------- content types


@dataclass(frozen=True)
class _ContentTypes:
    """Bodies of the API are JSON, and those of pages are forms: what pages of other sites cannot send unasked."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS:
            headers = Headers(scope=scope)
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
            expected = _expected(scope)
            if scope["path"] == RELEASE and kind == "text/plain":  # as a beacon of a closing page has it
                scope = {**scope, "headers": _as_json(scope["headers"])}
            elif not empty and kind not in expected:
                await refuse(scope, 415, f"the content type must be {' or '.join(expected)}")(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _expected(scope: Scope) -> tuple[str, ...]:
    if scope["path"] == batches.PATH:
        return tuple(READ)
    return (JSON,) if is_api(scope) else ("application/x-www-form-urlencoded",)


def _as_json(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [*((n, v) for n, v in headers if n.lower() != b"content-type"), (b"content-type", b"application/json")]


# ---------------------------------------------------------------- errors


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> Response:
        return refuse(request.scope, error.status_code, _lower(str(error.detail)), error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        if not is_api(request.scope):
            return refuse(request.scope, 422, "a field of the form is missing or too long")
        mistakes = [
            {"loc": [_plain(part) for part in one["loc"]], "msg": _plain(one["msg"]), "type": one["type"]}
            for one in error.errors()[:MOST_ERRORS]
        ]
        return JSONResponse({"detail": mistakes}, 422)

    @app.exception_handler(StorageError)
    def storage(request: Request, error: StorageError) -> Response:
        return refuse(request.scope, 503, str(error))


def _plain(part: Any) -> Any:
    """A part of a message, without the characters of a request that no answer can have, and not too long."""
    return part if isinstance(part, int) else str(part).encode("utf-8", "replace").decode()[:300]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
