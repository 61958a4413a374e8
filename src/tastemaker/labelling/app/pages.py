"""The pages for everybody and for labelers: logging in and out, joining, the labelling page, its files and images."""

from __future__ import annotations

import re
import time
from pathlib import Path as FilePath
from typing import Annotated

import sqlalchemy as sa
from fastapi import FastAPI, Form, HTTPException, Path, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from tastemaker.errors import ConfigError
from tastemaker.labelling import accounts
from tastemaker.labelling.app.access import Caller, access
from tastemaker.labelling.app.context import Context
from tastemaker.labelling.app.images import read_image_file
from tastemaker.labelling.app.templating import render
from tastemaker.labelling.tables import ImageRow
from tastemaker.web.tokens import same

_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".woff2": "font/woff2"}
_STATIC = FilePath(__file__).parent / "static"

Name = Annotated[str, Form(max_length=4 * accounts.MOST_NAME)]
Password = Annotated[str, Form(max_length=2 * accounts.MOST_PASSWORD)]
Secret = Annotated[str, Path(max_length=100)]


def add_pages(app: FastAPI, context: Context) -> None:
    """Adds the routes."""
    _add_files(app, context)
    _add_login(app, context)
    _add_join(app, context)

    @app.get("/", **access("anonymous"), include_in_schema=False)
    def start() -> RedirectResponse:
        return RedirectResponse("/label", 303)

    @app.get("/label", **access("labeler"), include_in_schema=False)
    def label(caller: Caller) -> HTMLResponse:
        return HTMLResponse(
            render("label.html", title=context.settings.title, project_uuid=context.project.uuid, role=caller.role)
        )

    @app.get("/account", **access("labeler"), include_in_schema=False)
    def account(caller: Caller, changed: str = "") -> HTMLResponse:
        return _account(context, caller, "The password is changed." if changed else None, None, 200)

    @app.post("/account", **access("labeler"), include_in_schema=False)
    def change_password(request: Request, caller: Caller, password: Password, new: Password) -> Response:
        try:
            found = _checked_password(context, request, caller.name, password)
            if found is None:
                return _account(context, caller, None, "The present password is wrong.", 403)
            with context.hashing:
                hashed = accounts.hashed_password(new)
        except _TooMany as error:
            return _account(context, caller, None, str(error), 429, error.headers)
        except ConfigError as error:
            return _account(context, caller, None, _sentence(error), 400)
        with context.project.database.write() as session:
            accounts.new_password(session, caller.id, hashed)
            cookie = accounts.begin_session(session, caller.id, time.time())
        return _logged_in(context, cookie, "/account?changed=1")


def _add_files(app: FastAPI, context: Context) -> None:
    # Only the files that are there at the start: no path of a request is ever looked up.
    files = {path.name: path.read_bytes() for path in sorted(_STATIC.iterdir()) if path.suffix in _TYPES}

    @app.get("/static/{name}", **access("anonymous"), include_in_schema=False)
    def static(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "there is no such file")
        kind = _TYPES[FilePath(name).suffix]
        return Response(files[name], media_type=kind, headers={"cache-control": "no-cache"})

    @app.get("/images/{sha256}.png", **access("labeler"), include_in_schema=False)
    def image(sha256: str) -> Response:
        found = None
        if re.fullmatch("[0-9a-f]{64}", sha256):
            with context.project.database.read() as session:
                found = session.scalar(sa.select(ImageRow.size).where(ImageRow.sha256 == sha256))
        data = None if found is None else read_image_file(context.project.folder, sha256, found)
        if data is None:
            raise HTTPException(404, "there is no such image")
        # The whole file, whatever part is asked for: its name is that of its content.
        headers = {"cache-control": "private, max-age=31536000, immutable", "accept-ranges": "none"}
        return Response(data, media_type="image/png", headers=headers)


# ---------------------------------------------------------------- log-ins


class _TooMany(Exception):
    """Too many failed log-ins."""

    def __init__(self, wait: float) -> None:
        super().__init__(f"There were too many failed attempts. Try again in {wait / 60:.0f} minutes.")
        self.headers = {"retry-after": str(int(wait) + 1)}


def _add_login(app: FastAPI, context: Context) -> None:
    @app.get("/login", **access("anonymous"), include_in_schema=False)
    def login_page() -> HTMLResponse:
        return _login(context)

    @app.post("/login", **access("anonymous"), include_in_schema=False)
    def log_in(
        request: Request,
        name: Name = "",
        password: Password = "",
        token: Annotated[str, Form(max_length=200)] = "",
    ) -> Response:
        try:
            if token:
                user = _checked_token(context, request, token)
                text = "The token is wrong. It is in the file admin-token of the project's folder."
            else:
                user = _checked_password(context, request, name, password)
                text = "The name or the password is wrong."
        except _TooMany as error:
            return _login(context, str(error), 429, name, error.headers)
        if user is None:
            return _login(context, text, 403, name)
        with context.project.database.write() as session:
            if token:
                user = accounts.admin_user(session, time.time())
            earlier = request.cookies.get(context.cookie)
            cookie = accounts.begin_session(session, user, time.time(), earlier)
        return _logged_in(context, cookie, "/admin" if token else "/label")

    @app.post("/logout", **access("anonymous"), include_in_schema=False)
    def log_out(request: Request) -> Response:
        cookie = request.cookies.get(context.cookie)
        if cookie:
            with context.project.database.write() as session:
                accounts.end_session(session, cookie)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(context.cookie, path="/", secure=context.secure, httponly=True, samesite="strict")
        return response


def _checked_token(context: Context, request: Request, token: str) -> int | None:
    """0 where it is the administrator's token, else None. Raises _TooMany."""
    address = _address(request)
    now = time.time()
    # A random token cannot be guessed, so failures count for the address alone and lock nobody else out.
    name = f"token from {address}"
    if wait := context.attempts.begin(name, address, now):
        raise _TooMany(wait)
    if not same(token.strip().encode("utf-8", "surrogatepass"), context.token.secret.encode()):
        return None
    context.attempts.succeeded(name, address, now)
    return 0


def _checked_password(context: Context, request: Request, name: str, password: str) -> int | None:
    """The user with this name and password, else None. Raises _TooMany."""
    address, key, now = _address(request), f"name {name.strip().casefold()}", time.time()
    if wait := context.attempts.begin(key, address, now):
        raise _TooMany(wait)
    with context.project.database.read() as session:
        found = accounts.find_password(session, name)
    with context.hashing:
        right = accounts.is_password(password, found)
    if not right or found is None:
        return None
    context.attempts.succeeded(key, address, now)
    return found[0]


def _address(request: Request) -> str:
    return request.client.host if request.client else "?"


def _logged_in(context: Context, cookie: str, target: str) -> Response:
    response = RedirectResponse(target, 303)
    response.set_cookie(
        context.cookie, cookie, max_age=int(accounts.SESSION_SECONDS), path="/", secure=context.secure, httponly=True,
        samesite="strict",
    )  # fmt: skip
    return response


def _login(
    context: Context, problem: str | None = None, status: int = 200, name: str = "", headers: dict | None = None
) -> HTMLResponse:
    page = render("login.html", title=context.settings.title, problem=problem, name=name)
    return HTMLResponse(page, status, headers)


def _account(
    context: Context, caller: accounts.Person, notice: str | None, problem: str | None, status: int,
    headers: dict | None = None,
) -> HTMLResponse:  # fmt: skip
    page = render(
        "account.html", title=context.settings.title, person=caller, notice=notice, problem=problem,
        least=accounts.LEAST_PASSWORD,
    )  # fmt: skip
    return HTMLResponse(page, status, headers)


# ---------------------------------------------------------------- invitations


def _add_join(app: FastAPI, context: Context) -> None:
    @app.get("/join/{secret}", **access("anonymous"), include_in_schema=False)
    def join_page(secret: Secret) -> HTMLResponse:
        with context.project.database.read() as session:
            known = accounts.find_invitation(session, secret, time.time()) is not None
        if not known:
            return _join(context, False, "This invitation is used up, revoked or expired. Ask for another.", 404)
        return _join(context, True)

    @app.post("/join/{secret}", **access("anonymous"), include_in_schema=False)
    def join(request: Request, secret: Secret, name: Name, password: Password) -> Response:
        database = context.project.database
        try:
            # Before the costly hash, which otherwise everybody could have computed.
            with database.read() as session:
                if accounts.find_invitation(session, secret, time.time()) is None:
                    raise ConfigError("this invitation is used up, revoked or expired: ask for another")
            with context.hashing:
                hashed = accounts.hashed_password(password)
            with database.write() as session:
                now = time.time()
                user = accounts.join(session, secret, name, hashed, now)
                cookie = accounts.begin_session(session, user, now, request.cookies.get(context.cookie))
        except ConfigError as error:
            return _join(context, True, _sentence(error), 400, name)
        return _logged_in(context, cookie, "/label")


def _join(context: Context, known: bool, problem: str | None = None, status: int = 200, name: str = "") -> HTMLResponse:
    page = render(
        "join.html", title=context.settings.title, known=known, problem=problem, name=name,
        least=accounts.LEAST_PASSWORD, most_name=accounts.MOST_NAME,
    )  # fmt: skip
    return HTMLResponse(page, status)


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:] + "."
