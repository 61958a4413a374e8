"""What servers share: host names, requests of other sites, bodies, tokens."""

from __future__ import annotations

import asyncio
import socket

import pytest
from starlette.datastructures import Headers

from tastemaker.errors import ConfigError
from tastemaker.web import bodies
from tastemaker.web.bodies import BodyError, content_length, read_body
from tastemaker.web.guard import Guard, LimitedBodies
from tastemaker.web.hosts import (
    check_port,
    checked_public_url,
    host_name,
    is_known,
    is_loopback,
    known_hosts,
    machine_hosts,
)
from tastemaker.web.listening import listen
from tastemaker.web.origins import is_cross_site
from tastemaker.web.tokens import Token, is_bearer


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("Example.org", "example.org"), ("example.org:80", "example.org"), ("[::1]:8000", "::1"),
        ("127.0.0.1", "127.0.0.1"), ("", None), (None, None), ("a@b", None), ("a/b", None), ("a,b", None),
        ("[::1", None),
    ],
)  # fmt: skip
def test_names_of_hosts(header, name):
    assert host_name(header) == name


def test_loopback_has_its_own_names_alone():
    assert is_loopback("127.0.0.1")
    assert is_loopback("127.8.9.1")
    assert is_loopback("localhost")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("192.168.1.5")
    hosts = known_hosts("127.0.0.1")
    assert is_known("localhost", hosts)
    assert not is_known("192.168.1.5", hosts)
    assert not is_known("example.org", hosts)
    assert not is_known(None, hosts)
    assert known_hosts("0.0.0.0") is None
    assert is_known("example.org", None)


def test_a_server_for_other_machines_is_called_by_addresses_and_its_own_name(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "Box")
    hosts = machine_hosts("0.0.0.0")
    for name in ("192.168.1.5", "fe80::1", "box", "box.local", "localhost"):
        assert is_known(name, hosts), name
    for name in ("example.org", "box.example.org", None, "1.2.3.4.example.org"):
        assert not is_known(name, hosts), name


@pytest.mark.parametrize("url", ["https://Labels.example.org/", "http://10.0.0.1:80", "https://labels.example.org"])
def test_public_addresses(url):
    assert checked_public_url(url) == url.lower().rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "", "labels", "ftp://a", "https://", "https://a/b", "https://a?b", "https://u@a", "https://a b", "https://[",
        "http://a:x",
    ],
)  # fmt: skip
def test_public_addresses_that_are_none(url):
    with pytest.raises(ConfigError, match="address"):
        checked_public_url(url)


@pytest.mark.parametrize(
    ("headers", "cross"),
    [
        ({}, False), ({"origin": "http://a:1"}, False), ({"origin": "https://a:1"}, False),
        ({"origin": "http://A:1"}, False), ({"origin": "http://a:2"}, True), ({"origin": "http://a"}, True),
        ({"origin": "null"}, True), ({"origin": ""}, True), ({"origin": "https://proxy"}, False),
        ({"sec-fetch-site": "none"}, False), ({"sec-fetch-site": "cross-site"}, True),
        ({"sec-fetch-site": "same-site"}, True), ({"sec-fetch-site": "same-origin", "origin": "null"}, False),
        ({"sec-fetch-site": "same-origin", "origin": "http://b"}, True),
    ],
)  # fmt: skip
def test_requests_of_other_sites(headers, cross):
    assert is_cross_site(Headers({"host": "a:1"} | headers), frozenset({"https://proxy"})) == cross


def test_tokens():
    token = Token("secret")
    assert is_bearer("Bearer secret", token)
    for header in (
        None,
        "",
        "secret",
        "Bearer",
        "Bearer secret ",
        "bearer secret",
        "Bearer secrets",
        "Basic secret",
        "é",
    ):
        assert not is_bearer(header, token), header
    assert "secret" not in repr(token)
    assert token.hidden("a secret b") == "a *** b"


def test_lengths():
    assert content_length("12") == 12
    for header in (None, "", "-1", "1.0", "+1", "1" * 20, "٣"):
        assert content_length(header) is None


def test_bodies_are_within_size_and_time(monkeypatch):
    too_long = BodyError(413, "too long")

    async def parts(*given, wait=0.0):
        for part in given:
            await asyncio.sleep(wait)
            yield part

    assert asyncio.run(read_body(parts(b"ab", b"c"), 3, too_long)) == b"abc"
    with pytest.raises(BodyError, match="too long"):
        asyncio.run(read_body(parts(b"ab", b"cd"), 3, too_long))
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)
    with pytest.raises(BodyError, match="did not arrive") as slow:
        asyncio.run(read_body(parts(b"a", b"b", wait=5.0), 3, too_long))
    assert slow.value.status == 408


async def _echo(scope, receive, send) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1"), (b"a", b"own")]})
    await send({"type": "http.response.body", "body": message.get("body", b"")})


def _refuse(scope, status, text):
    async def answer(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": text.encode()})

    return answer


def _ask(app, method="POST", body=(b"x",), **headers) -> tuple[int, dict[str, str], bytes]:
    sent, parts = [], list(body)

    async def receive():
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)} if part is not None else {
            "type": "http.disconnect"
        }  # fmt: skip

    async def send(message) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in ({"host": "a"} | headers).items()]
    asyncio.run(app({"type": "http", "method": method, "path": "/", "headers": raw}, receive, send))
    if not sent:
        return 0, {}, b""
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message["body"] for message in sent[1:])


def test_the_guard():
    app = Guard(_echo, frozenset({"a"}), frozenset(), _refuse, {"a": "given", "b": "given"})
    assert _ask(app) == (200, {"x-own": "1", "a": "own", "b": "given"}, b"x")
    status, headers, _ = _ask(app, host="b")
    assert (status, headers) == (403, {"a": "given", "b": "given"})
    assert _ask(app, origin="http://b")[0] == 403
    assert _ask(app, "GET", origin="http://b")[0] == 200


def test_limited_bodies():
    app = LimitedBodies(_echo, lambda scope: 3, _refuse)
    assert _ask(app, body=(b"ab", b"c"))[::2] == (200, b"abc")
    assert _ask(app, body=(b"ab", b"cd"))[0] == 413
    assert _ask(app, body=(b"",), content_length="4")[0] == 413
    assert _ask(app, body=(b"a", None))[0] == 0  # the client has gone
    assert _ask(app, "GET", body=(b"abcd",))[0] == 200  # is not read


def test_ports_that_are_none_and_that_are_taken():
    for port in (-1, 65536):
        with pytest.raises(ConfigError, match=r"--port is"):
            check_port(port)
    with listen("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match=r"cannot listen at 127\.0\.0\.1 port"):
        listen("127.0.0.1", taken.getsockname()[1])
