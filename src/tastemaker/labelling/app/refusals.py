"""Answers to requests that are refused: JSON to programs, a page to people."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Scope

from tastemaker.labelling.app.templating import render


def is_api(scope: Scope) -> bool:
    """Whether a request is of a program, which reads JSON."""
    path: str = scope["path"]
    return path.startswith("/api/") or path in ("/openapi.json", "/health")


def refuse(scope: Scope, status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """The response to a request that is refused, with a sentence."""
    if is_api(scope):
        return JSONResponse({"detail": text}, status, headers)
    page = render("error.html", title=HTTPStatus(status).phrase, text=text[:1].upper() + text[1:] + ".")
    return HTMLResponse(page, status, headers)
