"""Who may call which route. Every route declares it, and what is not declared is refused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from tastemaker.errors import StorageError
from tastemaker.labelling.accounts import Person, person_of
from tastemaker.labelling.app.context import Context
from tastemaker.labelling.app.refusals import is_api, refuse
from tastemaker.web.tokens import is_bearer

Access = Literal["anonymous", "labeler", "admin", "token"]
"""`anonymous`: everybody. `labeler`: who is logged in. `admin`: administrators who are logged in. `token`: those, and
programs that send the administrator's token."""
ACCESS: tuple[Access, ...] = ("anonymous", "labeler", "admin", "token")
_FIELD = "x-access"


def access(needed: Access) -> dict[str, Any]:
    """Arguments of a route's decorator that declare who may call it."""
    kinds: dict[Access, list[dict[str, list[str]]]] = {
        "anonymous": [],
        "labeler": [{"session": []}],
        "admin": [{"session": []}],
        "token": [{"token": []}, {"session": []}],
    }
    return {"openapi_extra": {_FIELD: needed, "security": kinds[needed]}}


def declared(route: object) -> Access | None:
    """What a route declares; None where it declares nothing."""
    found = (route.openapi_extra or {}).get(_FIELD) if isinstance(route, APIRoute) else None
    return found if found in ACCESS else None


def check_declared(app: FastAPI) -> None:
    """Raises RuntimeError for a route that does not declare who may call it."""
    for route in app.routes:
        if declared(route) is None:
            raise RuntimeError(f"{route} does not declare who may call it: decorate it with **access(...)")


def person(request: Request) -> Person:
    """Who calls a route for labelers or administrators."""
    return request.state.person


Caller = Annotated[Person, Depends(person)]


@dataclass(frozen=True)
class AccessControl:
    """An application whose routes are called by those alone who may, as ASGI."""

    app: ASGIApp
    routes: Sequence[object]
    context: Context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        needed = self._needed(scope)
        if needed is None or needed == "anonymous":
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        try:
            found = await run_sync(self._person, connection.cookies.get(self.context.cookie))
        except StorageError as error:
            await refuse(scope, 503, str(error))(scope, receive, send)
            return
        by_token = needed == "token" and is_bearer(connection.headers.get("authorization"), self.context.token)
        if not by_token and found is None:
            await _ask_to_log_in(scope)(scope, receive, send)
        elif not by_token and needed in ("admin", "token") and found is not None and found.role != "admin":
            await refuse(scope, 403, "this is for administrators of the project")(scope, receive, send)
        else:
            scope.setdefault("state", {})["person"] = found
            await self.app(scope, receive, send)

    def _needed(self, scope: Scope) -> Access | None:
        """What the route of a request needs; None where there is no such route, which the application answers."""
        for route in self.routes:
            if isinstance(route, APIRoute) and route.matches(scope)[0] is Match.FULL:
                needed = declared(route)
                assert needed is not None, "checked when the application was made"
                return needed
        return None

    def _person(self, cookie: str | None) -> Person | None:
        if not cookie:
            return None
        with self.context.project.database.read() as session:
            return person_of(session, cookie, time.time())


def _ask_to_log_in(scope: Scope) -> ASGIApp:
    if is_api(scope) or scope["method"] != "GET":
        return refuse(scope, 401, "log in first, or again", {"www-authenticate": "Bearer"})
    return RedirectResponse("/login", 303)
