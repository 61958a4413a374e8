"""What people try on a server: each is refused, and the server goes on."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from html.parser import HTMLParser

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient
from tests.label_client import ADDRESS, PASSWORD, TOKEN, Served, served
from tests.label_projects import claimed, image, judged, rows

from tastemaker.labelling import accounts
from tastemaker.labelling.app import attempts
from tastemaker.labelling.app.app import BODY
from tastemaker.labelling.app.context import Context
from tastemaker.labelling.image_files import image_path
from tastemaker.labelling.project import NewImage, NewTask, add_tasks
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Assignment, ImageRow, Invitation, LoginSession, TaskImage, User

SCRIPT = "<script>alert(1)</script>"
SVG = '<svg onload="alert(1)"><image href="http://192.0.2.1/x.png"/></svg>'


@pytest.fixture
def app(tmp_path):
    with served(tmp_path / "project") as found:
        yield found


def first_image(app: Served) -> ImageRow:
    with app.project.database.read() as session:
        row = session.scalars(sa.select(ImageRow).order_by(ImageRow.sha256)).all()[0]
        session.expunge(row)
        return row


def invitation(app: Served, uses: int = 1, seconds: float = 3600.0) -> str:
    with app.project.database.write() as session:
        return accounts.invite(session, "labeler", "", uses, time.time() + seconds, time.time())


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "name",
    [
        "../project.json", "..%2fproject.json", "%2e%2e%2fproject.json", "%252e%252e%252fproject.json", ".", "..",
        "..%5cadmin-token", "%2fetc%2fpasswd", "....//project.json", "\u2025/project.json", "base.css%00.js", "app.py",
        "%2e%2e/app.py",
    ],
)  # fmt: skip
def test_paths_out_of_the_folders_are_none(app: Served, name):
    client = app.client("labeler")
    for folder in ("/static/", "/images/", "/images/ab/"):
        response = client.get(f"{folder}{name}")
        # httpx itself resolves plain dots, which then name another route or none.
        assert response.status_code in (303, 404), response.url
        assert "uuid" not in response.text


def test_images_are_those_of_the_database_alone(app: Served):
    client, row = app.client("labeler"), first_image(app)
    good = client.get(f"/images/{row.sha256}.png")
    assert good.status_code == 200
    assert good.content == image_path(app.project.folder, row.sha256).read_bytes()
    assert good.headers["content-type"] == "image/png"
    assert good.headers["accept-ranges"] == "none"
    assert good.headers["cache-control"] == "private, max-age=31536000, immutable"
    stray = image_path(app.project.folder, "ab" * 32)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(good.content)
    for name in ("ab" * 32, row.sha256.upper(), row.sha256[:-1], row.sha256 + "0", row.sha256 + "%0a"):
        assert client.get(f"/images/{name}.png").status_code == 404


def test_symbolic_links_among_the_images_are_not_followed(app: Served, tmp_path):
    client, row = app.client("labeler"), first_image(app)
    path = image_path(app.project.folder, row.sha256)
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * row.size)  # of the right size
    data = path.read_bytes()
    path.unlink()
    path.symlink_to(secret)
    assert client.get(f"/images/{row.sha256}.png").status_code == 404
    path.unlink()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / path.name).write_bytes(data)
    for other in path.parent.iterdir():
        other.unlink()
    path.parent.rmdir()
    path.parent.symlink_to(outside)
    assert client.get(f"/images/{row.sha256}.png").status_code == 404
    path.parent.unlink()
    path.parent.mkdir()
    path.write_bytes(data)
    assert client.get(f"/images/{row.sha256}.png").status_code == 200


def test_a_changed_or_huge_file_is_not_read(app: Served):
    """A file that is not of the size that the database says, such as a decompression bomb put in its place."""
    client, row = app.client("labeler"), first_image(app)
    path = image_path(app.project.folder, row.sha256)
    with path.open("r+b") as file:
        file.truncate(2**40)  # sparse: it takes no room
    assert client.get(f"/images/{row.sha256}.png").status_code == 404


@pytest.mark.parametrize("value", ["bytes=0-0", "bytes=0-", "bytes=-1", "bytes=0-1,2-3", "bytes=" + "0-1," * 2000, "x"])
def test_ranges_are_not_looked_at(app: Served, value):
    client, row = app.client("labeler"), first_image(app)
    response = client.get(f"/images/{row.sha256}.png", headers={"range": value})
    assert (response.status_code, len(response.content)) == (200, row.size)
    assert "content-range" not in response.headers


def test_a_decompression_bomb_is_no_batch(app: Served):
    """A PNG of a few bytes that says it has 60000 x 60000 pixels."""
    import base64
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    content = {"prompts": ["a", "a"], "images": [base64.b64encode(bomb).decode()] * 2}
    response = app.client().post("/api/batches", json=content, headers={"authorization": f"Bearer {TOKEN.secret}"})
    assert response.status_code == 413


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000, b'{"judgements":' * 10_000, b'{"judgements": [' + b'{"a":' * 20_000, b"", b"null", b"\xff\xfe",
        b'{"judgements": []}', b"1" * 5000, b'{"judgements": "' + b"x" * 100_000 + b'"}', b"NaN",
        json.dumps({"judgements": [{}] * 51}).encode(),
        json.dumps({"judgements": [{"x" * 1000: 1}]}).encode(),
    ],
    ids=range(12),
)  # fmt: skip
def test_bodies_that_are_none_are_refused(app: Served, content):
    headers = {"content-type": "application/json"}
    response = app.client("labeler").post("/api/judgements", content=content, headers=headers)
    assert response.status_code in (400, 422)
    assert len(response.content) < 20_000


def test_too_long_bodies_are_refused(app: Served):
    client, headers = app.client("labeler"), {"content-type": "application/json"}
    long = b" " * BODY
    assert client.post("/api/judgements", content=long + b" ", headers=headers).status_code == 413
    # In parts, without a length.
    parts = (b" " * 1000 for _ in range(BODY // 1000 + 1))
    assert client.post("/api/judgements", content=parts, headers=headers).status_code == 413
    assert client.post("/api/judgements", content=long, headers=headers).status_code in (400, 422)
    claimed = headers | {"content-length": str(2**40)}
    assert client.post("/api/judgements", content=b"{}", headers=claimed).status_code == 413
    form = client.post("/login", data={"name": "x", "password": "y" * BODY})
    assert form.status_code == 413


@pytest.mark.parametrize("field", ["name", "password", "token"])
def test_long_and_odd_fields_of_forms(app: Served, field):
    for value in ("x" * 10_000, "\0", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "%00", "𝔘" * 50):
        response = app.client().post("/login", data={"name": "x", "password": "y"} | {field: value})
        assert response.status_code in (403, 422)


def test_text_that_no_answer_can_have(app: Served):
    """A lone surrogate, in a value, a key and the name of an unknown field, and a NUL."""
    client, headers = app.client("labeler"), {"content-type": "application/json"}
    for content in (
        '{"keys": {"undo": "\\ud800"}}', '{"keys": {"\\ud800": "a"}}', '{"\\ud800": 1}',
        '{"keys": {"undo": "\\u0000"}}',
    ):  # fmt: skip
        response = client.put("/api/keys", content=content, headers=headers)
        assert response.status_code == 422, content
        assert all(set(mistake) == {"loc", "msg", "type"} for mistake in response.json()["detail"])


# ---------------------------------------------------------------- markup


class Elements(HTMLParser):
    """Collects elements and attributes that run scripts, style, or fetch from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("style", "svg", "img", "iframe", "object", "embed", "base") or (
            tag == "script" and "src" not in given
        ):
            self.bad.append((tag, ""))
        for name, value in given.items():
            if name.startswith("on") or name in ("style", "srcdoc"):
                self.bad.append((tag, name))
            if name in ("src", "href", "action", "formaction") and not (value or "").startswith("/"):
                self.bad.append((tag, f"{name}={value}"))


def test_markup_is_shown_as_text(tmp_path):
    instructions = f"{SCRIPT}\n\n{SVG}\n\n[x](javascript:alert(1)) ![y](http://192.0.2.1/y.png)\n\n|a|\n|:-:|\n|b|\n"
    settings = Labelling(title=SCRIPT, question=SVG, instructions=instructions, marks=("<b>",))
    with served(tmp_path / "project", settings, tasks=0) as app:
        pair = [NewImage(image(1), SCRIPT), NewImage(image(2))]
        add_tasks(app.project, [NewTask(SVG, pair)])
        app.user(SCRIPT)
        admin, labeler = app.client("admin"), app.client(SCRIPT)
        labeler.post("/api/assignments", json={"count": 1})
        admin.post("/admin/invitations", data={"note": SCRIPT})
        pages = [
            *(admin.get(f"/admin{page}") for page in ("", "/invitations", "/users", "/settings", "/export")),
            admin.get("/label"), admin.get("/account"), labeler.get("/account"), admin.get("/login"),
            admin.post("/login", data={"name": SCRIPT, "password": "x"}), admin.get("/join/x"),
            admin.post("/join/x", data={"name": SCRIPT, "password": "x"}), admin.get(f"/{SCRIPT}"),
        ]  # fmt: skip
        shown = [page for page in pages if "text/html" in page.headers["content-type"]]
        assert len(shown) == len(pages)
        for page in shown:
            assert SCRIPT not in page.text
            assert SVG not in page.text
            # Nothing within a page is a script, a style or of another server.
            found = Elements()
            found.feed(page.text)
            assert found.bad == [], page.url
        html = labeler.get("/api/me").json()["project"]["instructions_html"]
        assert not re.search("<script|<svg|<img|style=", html)
        assert 'href="javascript:' not in html
        assert 'rel="noopener noreferrer"' in html
        # JSON is no page, whatever is in it.
        found = labeler.post("/api/assignments", json={"count": 1})
        assert found.json()["assignments"][0]["prompt"] == SVG
        assert found.headers["content-type"] == "application/json"
        assert found.headers["x-content-type-options"] == "nosniff"


def test_every_response_has_the_headers(app: Served):
    client = app.client("admin")
    images = f"/images/{first_image(app).sha256}.png"
    for path in ("/", "/health", "/login", "/static/base.css", "/label", "/admin", "/api/me", "/nothing", images):
        headers = client.get(path).headers
        policy = headers["content-security-policy"].split("; ")
        assert policy[0] == "default-src 'none'"
        assert {"script-src 'self'", "style-src 'self'", "frame-ancestors 'none'", "form-action 'self'"} < set(policy)
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["referrer-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
        assert path.startswith(("/static", "/images")) or headers["cache-control"] == "no-store"
    refused = client.get("/label", headers={"host": "example.org"})
    assert refused.headers["content-security-policy"] == headers["content-security-policy"]


# ---------------------------------------------------------------- other sites


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://localhost:8001"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": ADDRESS}, {"origin": ""}, {"origin": "http://127.0.0.1"},
    ],
)  # fmt: skip
def test_requests_of_other_sites_are_refused(app: Served, headers):
    client = app.client("admin")
    for method, path, options in [
        ("POST", "/api/assignments", {"json": {"count": 1}}), ("PUT", "/api/keys", {"json": {"keys": {}}}),
        ("POST", "/logout", {"data": {}}), ("POST", "/login", {"data": {"token": TOKEN.secret}}),
        ("POST", "/admin/invitations", {"data": {"note": "x"}}), ("DELETE", f"/api/batches/{'0' * 64}", {}),
    ]:  # fmt: skip
        assert client.request(method, path, headers=headers, **options).status_code == 403
    assert rows(app.project, sa.select(Invitation.id)) == []
    assert (
        client.get("/api/me", headers=headers).status_code == 200
    )  # reading is no harm, and says nothing to the other


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"origin": ADDRESS}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"},
        {"sec-fetch-site": "same-origin", "origin": "null"},
    ],
)  # fmt: skip
def test_requests_of_the_own_pages_are_taken(app: Served, headers):
    response = app.client("labeler").post("/api/assignments", json={"count": 1}, headers=headers)
    assert response.status_code == 200


def test_forms_of_other_sites_cannot_be_json(app: Served):
    """What a form of another page can send without being asked: the three types of forms."""
    client = app.client("labeler")
    body = json.dumps({"count": 1})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        headers = {"content-type": kind}
        assert client.post("/api/assignments", content=body, headers=headers).status_code == 415
    released = client.post(
        "/api/assignments/release", content='{"assignments": []}', headers={"content-type": "text/plain"}
    )
    assert released.status_code == 200  # of a beacon
    page = {"files": {"password": b"x"}, "data": {"name": "y"}}
    assert client.post("/login", **page).status_code == 415


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8001", "", "a b", "[::1", "1.2.3.4"]
)
def test_other_host_names_are_refused(app: Served, host):
    for path in ("/health", "/login", "/api/me", "/static/base.css"):
        assert app.client("labeler").get(path, headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8001", "LOCALHOST", "[::1]:8001", "127.0.0.1:80"])
def test_own_host_names_are_taken(app: Served, host):
    assert app.client("labeler").get("/api/me", headers={"host": host}).status_code == 200


# ---------------------------------------------------------------- log-ins


def join(app: Served, name: str = "ann", password: str = PASSWORD) -> TestClient:
    client = app.client()
    response = client.post(f"/join/{invitation(app)}", data={"name": name, "password": password})
    assert (response.status_code, response.headers["location"]) == (303, "/label")
    return client


def test_joining_and_logging_in_and_out(app: Served):
    client = join(app)
    assert client.get("/api/me").json()["name"] == "ann"
    assert client.post("/logout").status_code == 303
    assert client.get("/api/me").status_code == 401
    for name, password in [("ann", "wrong horse"), ("Ann", PASSWORD), ("bob", PASSWORD), ("", ""), ("ann", "")]:
        response = client.post("/login", data={"name": name, "password": password})
        assert response.status_code == 403
        assert "set-cookie" not in response.headers
        assert "The name or the password is wrong." in response.text
    assert client.post("/login", data={"name": " ann ", "password": PASSWORD}).status_code == 303
    assert client.get("/api/me").json() | {"project": 0, "progress": 0} == {
        "name": "ann", "role": "labeler", "project": 0, "keys": {}, "progress": 0,
    }  # fmt: skip


def test_secrets_are_stored_as_hashes(app: Served):
    client = join(app)
    cookie = client.cookies[app.app.state.context.cookie]
    with app.project.database.read() as session:
        stored = " ".join(map(str, [
            *session.scalars(sa.select(LoginSession.token_hash)), *session.scalars(sa.select(Invitation.token_hash)),
            *session.scalars(sa.select(User.password_hash)),
        ]))  # fmt: skip
    assert cookie not in stored
    assert PASSWORD not in stored
    assert accounts.digest(cookie) in stored
    assert "$argon2id$" in stored


def test_cookie_flags(app: Served, tmp_path):
    cookie = app.client().post("/login", data={"token": TOKEN.secret}).headers["set-cookie"]
    parts = {part.strip().lower().partition("=")[0]: part.strip() for part in cookie.split(";")}
    assert {"httponly", "samesite", "path", "max-age"} < set(parts)
    assert parts["samesite"].lower() == "samesite=strict"
    assert parts["path"] == "Path=/"
    assert not {"secure", "domain"} & set(parts)
    options = {"public_url": "https://labels.example", "hosts": frozenset({"labels.example"})}
    with served(tmp_path / "other", **options) as other:
        cookie = other.client(base_url="https://labels.example").post("/login", data={"token": TOKEN.secret})
        assert cookie.headers["set-cookie"].startswith("__Host-tastemaker-")
        assert "; Secure" in cookie.headers["set-cookie"]


def test_projects_of_one_machine_do_not_share_a_cookie(app: Served, tmp_path):
    """Browsers send the cookies of a host to all its ports."""
    with served(tmp_path / "other") as other:
        assert other.app.state.context.cookie != app.app.state.context.cookie


def test_a_session_is_new_at_each_login(app: Served):
    """A cookie that somebody has put into the browser before is not the session then, and ends."""
    client, name = app.client(), app.app.state.context.cookie
    client.cookies.set(name, "A" * 43)
    set_cookie = client.post("/login", data={"token": TOKEN.secret}).headers["set-cookie"]
    first = set_cookie.partition("=")[2].partition(";")[0]
    assert first != "A" * 43
    again = app.client()
    again.cookies.set(name, first)
    second = (
        again.post("/login", data={"token": TOKEN.secret}).headers["set-cookie"].partition("=")[2].partition(";")[0]
    )
    assert second != first
    old = app.client()
    old.cookies.set(name, first)
    assert old.get("/api/me").status_code == 401


def test_disabling_resetting_and_changing_a_password_end_sessions(app: Served):
    admin, ann = app.client("admin"), join(app)
    user = rows(app.project, sa.select(User.id).where(User.name == "ann"))[0]
    page = admin.post(f"/admin/users/{user}/reset", data={"x": "1"}).text
    assert ann.get("/api/me").status_code == 401
    password = re.search(r'id="password" class="code" value="([a-z0-9-]+)"', page)[1]
    assert ann.post("/login", data={"name": "ann", "password": PASSWORD}).status_code == 403
    assert ann.post("/login", data={"name": "ann", "password": password}).status_code == 303
    other = app.client()
    other.post("/login", data={"name": "ann", "password": password})
    assert ann.post("/account", data={"password": "wrong one", "new": PASSWORD}).status_code == 403
    assert ann.post("/account", data={"password": password, "new": "short"}).status_code == 400
    assert ann.post("/account", data={"password": password, "new": PASSWORD}).status_code == 303
    assert ann.get("/api/me").status_code == 200
    assert other.get("/api/me").status_code == 401
    assert admin.post(f"/admin/users/{user}/disable", data={"x": "1"}).status_code == 303
    assert ann.get("/api/me").status_code == 401
    assert ann.post("/login", data={"name": "ann", "password": PASSWORD}).status_code == 403
    assert admin.post(f"/admin/users/{user}/enable", data={"x": "1"}).status_code == 303
    assert ann.post("/login", data={"name": "ann", "password": PASSWORD}).status_code == 303


def test_administrators_cannot_shut_themselves_out(app: Served):
    admin = app.client()
    admin.post("/login", data={"token": TOKEN.secret})
    other = app.client("second")
    with app.project.database.write() as session:
        session.execute(sa.update(User).where(User.name == "second").values(role="admin"))
    by_token = rows(app.project, sa.select(User.id).where(User.name == "admin"))[0]
    assert admin.post(f"/admin/users/{by_token}/disable", data={"x": "1"}).status_code == 400
    assert other.post(f"/admin/users/{by_token}/disable", data={"x": "1"}).status_code == 400
    assert other.post(f"/admin/users/{by_token}/reset", data={"x": "1"}).status_code == 400
    assert admin.get("/api/me").status_code == 200


def test_failed_logins_are_limited(app: Served, monkeypatch):
    join(app)
    context: Context = app.app.state.context
    context.attempts._failures.clear()
    clock = [1000.0]
    monkeypatch.setattr("tastemaker.labelling.app.pages.time.time", lambda: clock[0])
    # The limit is before argon2, which makes the test quick, too.
    monkeypatch.setattr("tastemaker.labelling.accounts.is_password", lambda password, found: password == PASSWORD)
    client = app.client()
    codes = [client.post("/login", data={"name": "ANN", "password": "wrong"}).status_code for _ in range(12)]
    assert codes == [403] * attempts.MOST_OF_NAME + [429] * 2
    right = client.post("/login", data={"name": "ann", "password": PASSWORD})
    assert right.status_code == 429  # also with the right password: nobody learns that it is right
    assert 0 < int(right.headers["retry-after"]) <= attempts.WINDOW_SECONDS + 1
    assert client.post("/login", data={"token": TOKEN.secret}).status_code == 303  # another name
    codes = [client.post("/login", data={"name": f"n{n}", "password": "wrong"}).status_code for n in range(25)]
    assert codes == [403] * (attempts.MOST_OF_ADDRESS - attempts.MOST_OF_NAME) + [429] * 5
    clock[0] += attempts.WINDOW_SECONDS + 1
    assert client.post("/login", data={"name": "ann", "password": PASSWORD}).status_code == 303


def test_many_attempts_at_once_are_counted(app: Served, monkeypatch):
    """Each before its password is checked, which takes long: here until all have come."""
    together = threading.Barrier(attempts.MOST_OF_NAME)
    monkeypatch.setattr("tastemaker.labelling.accounts.is_password", lambda *_: together.wait(20) < 0)
    app.app.state.context.hashing = threading.Semaphore(100)
    codes = []

    def attempt() -> None:
        codes.append(app.client().post("/login", data={"name": "ann", "password": "wrong"}).status_code)

    threads = [threading.Thread(target=attempt) for _ in range(attempts.MOST_OF_NAME + 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [403] * attempts.MOST_OF_NAME + [429] * 5


# ---------------------------------------------------------------- invitations


def test_an_invitation_is_used_as_often_as_it_says_by_many_at_once(app: Served):
    secret, codes = invitation(app, uses=2), []

    def join_as(name: str) -> None:
        data = {"name": name, "password": PASSWORD}
        codes.append(app.client().post(f"/join/{secret}", data=data).status_code)

    threads = [threading.Thread(target=join_as, args=(f"user {n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [303, 303, 400, 400, 400, 400]
    assert rows(app.project, sa.select(Invitation.uses)) == [2]
    assert len(rows(app.project, sa.select(User.id))) == 2


def test_invitations_that_do_not_hold(app: Served):
    admin = app.client("admin")
    page = admin.post("/admin/invitations", data={"note": "for ann", "days": 3, "max_uses": 2}).text
    link = re.search(r'value="(http://127.0.0.1:8001/join/[\w-]+)"', page)[1]
    secret = link.rpartition("/")[2]
    assert app.client().get(f"/join/{secret}").status_code == 200
    assert secret not in admin.get("/admin/invitations").text  # shown once
    data = {"name": "ann", "password": PASSWORD}
    assert app.client().post(f"/join/{secret}", data=data).status_code == 303
    assert app.client().post(f"/join/{secret}", data=data).status_code == 400  # the name is taken
    number = rows(app.project, sa.select(Invitation.id))[0]
    assert admin.post(f"/admin/invitations/{number}/revoke", data={"x": "1"}).status_code == 303
    expired = invitation(app, seconds=-1)
    for gone in (secret, expired, "x", "0" * 32):
        assert app.client().get(f"/join/{gone}").status_code == 404
        assert app.client().post(f"/join/{gone}", data=data | {"name": "bob"}).status_code == 400
    assert app.client().get(f"/join/{'x' * 101}").status_code == 422
    assert len(rows(app.project, sa.select(User.id).where(User.name != "admin"))) == 1


@pytest.mark.parametrize("name", ["", " ", "x" * 51, "a\nb", "a\0b", "\u202egnp", "admin", "Admin", "ADMIN "])
def test_names_that_are_none(app: Served, name):
    response = app.client().post(f"/join/{invitation(app)}", data={"name": name, "password": PASSWORD})
    assert response.status_code in (400, 422)
    assert rows(app.project, sa.select(User.id)) == []


@pytest.mark.parametrize("password", ["", "short", "x" * 201, "x" * 500])
def test_passwords_that_are_none(app: Served, password):
    response = app.client().post(f"/join/{invitation(app)}", data={"name": "ann", "password": password})
    assert response.status_code in (400, 422)
    assert rows(app.project, sa.select(Invitation.uses)) == [0]


# ---------------------------------------------------------------- what nobody is told


def test_the_token_is_in_no_log_and_no_answer(app: Served, caplog):
    caplog.set_level(logging.DEBUG)
    client = app.client()
    answers = [
        client.post("/login", data={"token": TOKEN.secret[:-1]}), client.post("/login", data={"token": TOKEN.secret}),
        client.get("/admin"), client.get("/admin/users"), client.get("/openapi.json"), client.get("/api/me"),
        client.get("/api/batches", headers={"authorization": f"Bearer {TOKEN.secret}"}),
    ]  # fmt: skip
    for answer in answers:
        assert TOKEN.secret not in answer.text + str(answer.headers)
    assert TOKEN.secret not in repr(app.app.state.context)
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert TOKEN.secret not in " ".join(record.getMessage() for record in ours)


@pytest.mark.parametrize("mode", ["pair", "rank", "best", "rate"])
def test_labelers_are_not_told_what_made_an_image_nor_what_is_gold_or_repeated(tmp_path, mode):
    """Words that stand for it are in the project, and in none of the answers to a labeler."""
    settings = Labelling(mode=mode, gold_rate=0.5, repeat_rate=0.5, images=None)
    with served(tmp_path / "project", settings, tasks=0) as app:
        count = settings.task_size

        def new(number: int, gold: bool) -> NewTask:
            images = [
                NewImage(image(100 * number + index), f"CANARY-model-{index}", {"run": "CANARY-run"}, "CANARY-file")
                for index in range(count)
            ]
            return NewTask(f"prompt {number}", images, [(0, 1, "a")] if gold and count > 1 else [] if gold else None)

        add_tasks(app.project, [new(number, number % 3 == 0) for number in range(24)])
        client, seen, kinds = app.client("ann"), [], set()
        names = {name for name in rows(app.project, sa.select(TaskImage.sha256))}
        for path in ("/label", "/account", "/api/me", "/admin", "/api/stats", "/openapi.json", "/api/batches"):
            seen.append(client.get(path))
        for _ in range(24):
            seen.append(client.post("/api/assignments", json={"count": 1}))
            found = seen[-1].json()["assignments"]
            if not found:
                break
            one = claimed(app.project, app.user("ann"), 1, time.time())[0]
            judged(app.project, app.user("ann"), one, time.time())
            seen.append(client.get("/api/history?count=3"))
            seen.append(client.get(f"/images/{one.images[0]}.png"))
            assert set(found[0]) == {
                "id", "prompt", "question", "images", "presentation", "sides", "judgements", "lease_until",
            }  # fmt: skip
        with app.project.database.read() as session:
            kinds = set(session.scalars(sa.select(Assignment.kind)))
        assert kinds == {"normal", "gold", "repeat"}
        for answer in seen:
            told = answer.content + str(answer.headers).encode()
            assert b"CANARY" not in told
            if answer.headers["content-type"] == "application/json":
                assert not re.search(rb'gold|repeat|"kind": ?"normal"|origin|"model"|validation|batch', answer.content)
        assert len(names) == 24 * count
