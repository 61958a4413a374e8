"""Every route of the labelling app, called by everybody: the matrix is made from the routes themselves."""

from __future__ import annotations

import itertools
import re
import time

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from tests.label_client import TOKEN, Served, served

from tastemaker.labelling import accounts
from tastemaker.labelling.app.access import ACCESS, access, check_declared, declared
from tastemaker.labelling.app.app import make_app

CALLERS = ("anonymous", "labeler", "admin", "token", "wrong token", "disabled", "expired", "forged")
# Written down once more, so that a route cannot become open by a slip.
EXPECTED = {
    "anonymous": {
        "GET /", "GET /health", "GET /static/{name}", "GET /login", "POST /login", "POST /logout", "GET /join/{secret}",
        "POST /join/{secret}",
    },
    "labeler": {
        "GET /label", "GET /account", "POST /account", "GET /images/{sha256}.png", "GET /api/me", "PUT /api/keys",
        "POST /api/assignments", "POST /api/assignments/renew", "POST /api/assignments/release",
        "GET /api/assignments/{assignment}", "POST /api/judgements", "GET /api/history",
    },
    "admin": {
        "GET /openapi.json", "GET /api/stats", "GET /admin", "GET /admin/invitations", "POST /admin/invitations",
        "POST /admin/invitations/{invitation}/revoke", "GET /admin/users", "POST /admin/users/{user}/disable",
        "POST /admin/users/{user}/enable", "POST /admin/users/{user}/reset", "GET /admin/settings",
        "POST /admin/settings", "GET /admin/export", "POST /admin/export", "GET /admin/batches",
        "POST /admin/batches/{key}/withdraw",
    },
    "token": {"GET /api/batches", "POST /api/batches", "GET /api/batches/{key}", "DELETE /api/batches/{key}"},
}  # fmt: skip


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with served(tmp_path_factory.mktemp("access") / "project") as found:
        yield found


def routes(app: FastAPI) -> list[tuple[str, str, str]]:
    found = []
    for route in app.routes:
        assert isinstance(route, APIRoute)
        needed = declared(route)
        assert needed is not None
        found += [(method, route.path, needed) for method in route.methods]
    return sorted(found)


def test_routes_are_those_that_are_known_with_their_access(app: Served):
    found = {needed: set() for needed in ACCESS}
    for method, path, needed in routes(app.app):
        found[needed].add(f"{method} {path}")
    assert found == EXPECTED


def test_a_route_without_declaration_fails_at_the_start(app: Served, monkeypatch):
    other = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @other.get("/declared", **access("labeler"))
    def fine() -> None:
        return None

    check_declared(other)

    @other.get("/undeclared")
    def forgotten() -> None:
        return None

    with pytest.raises(RuntimeError, match="undeclared"):
        check_declared(other)

    def add_undeclared(app: FastAPI, _) -> None:
        app.get("/undeclared")(forgotten)

    monkeypatch.setattr("tastemaker.labelling.app.app.add_pages", add_undeclared)
    with pytest.raises(RuntimeError, match="undeclared"):
        make_app(app.project, TOKEN)


def test_every_route_by_every_caller(app: Served):
    """What is refused is refused before the request is looked at, and what is allowed is not refused."""
    calls = 0
    for (method, path, needed), caller in itertools.product(routes(app.app), CALLERS):
        client = app.client()
        headers = credentials(app, caller)
        response = client.request(method, filled(path), headers=headers, **body(method, path))
        shown = f"{caller}: {method} {path} gave {response.status_code}"
        allowed = may(caller, needed)
        page = method == "GET" and not path.startswith("/api/") and path != "/openapi.json"
        if allowed:
            assert response.status_code not in (401, 500), shown
            if response.status_code == 403:  # a wrong password or token is the content's matter
                assert (method, path) in {("POST", "/login"), ("POST", "/account")}, shown
            redirect = response.headers.get("location") if response.status_code == 303 else None
            assert redirect != "/login" or path == "/logout", shown
        elif caller == "labeler":
            assert response.status_code == 403, shown
        elif page:
            assert (response.status_code, response.headers["location"]) == (303, "/login"), shown
        else:
            assert response.status_code == 401, shown
        calls += 1
    assert calls == len(CALLERS) * sum(map(len, EXPECTED.values()))


def may(caller: str, needed: str) -> bool:
    who = {
        "anonymous": set(CALLERS),
        "labeler": {"labeler", "admin"},
        "admin": {"admin"},
        "token": {"admin", "token"},
    }
    return caller in who[needed]


def credentials(app: Served, caller: str) -> dict[str, str]:
    if caller == "anonymous":
        return {}
    if caller in ("token", "wrong token"):
        return {"authorization": f"Bearer {TOKEN.secret}{'x' * (caller != 'token')}"}
    if caller == "forged":
        return {"cookie": f"{app.app.state.context.cookie}={'A' * 43}"}
    if caller == "expired":
        cookie = app.cookie("labeler", began=time.time() - accounts.SESSION_SECONDS - 1)
    else:
        cookie = app.cookie(caller)
    if caller == "disabled":
        with app.project.database.write() as session:
            # The flag alone: the session is still there.
            session.get_one(accounts.User, app.user("disabled")).disabled = True
    return {"cookie": f"{app.app.state.context.cookie}={cookie}"}


def filled(path: str) -> str:
    values = {"sha256": "0" * 64, "name": "base.css", "key": "0" * 64, "secret": "none", "user": "999999"}
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], "999999"), path)


def body(method: str, path: str) -> dict:
    """One that nothing comes of."""
    if method == "GET":
        return {}
    if path.startswith("/api/"):
        return {} if method == "DELETE" else {"json": {"assignments": []}}
    return {"data": {"name": "x", "password": "y", "new": "z"}}


@pytest.mark.parametrize("caller", ["anonymous", "wrong token"])
def test_nothing_of_a_request_is_looked_at_before_the_caller(app: Served, caller):
    """Neither the body's length, its type, nor its content: all of it is 401."""
    for content, kind in [(b"{", "application/json"), (b"x" * 10**6, "application/json"), (b"", "text/html")]:
        headers = credentials(app, caller) | {"content-type": kind}
        for path in ("/api/judgements", "/api/batches"):
            assert app.client().post(path, content=content, headers=headers).status_code == 401


def test_other_methods_and_paths_are_not_there(app: Served):
    client = app.client("admin")
    for method, path in [("TRACE", "/label"), ("DELETE", "/api/me"), ("PATCH", "/api/keys"), ("HEAD", "/label")]:
        assert client.request(method, path).status_code == 405
    for path in ("/docs", "/redoc", "/api", "/api/me/", "/static/", "/admin/", "//api/me", "/API/me", "/.git/config"):
        assert client.get(path).status_code == 404
