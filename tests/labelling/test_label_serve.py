"""`tastemaker label serve`, the administrators' pages, and what is written where."""

from __future__ import annotations

import io
import json
import os
import stat
import threading
import time
import zipfile

import httpx
import pytest
from tests.label_client import TOKEN, served
from tests.label_projects import add_user, claimed, image, judged, make_project

from tastemaker.cli import label_serve
from tastemaker.cli.main import main
from tastemaker.errors import ConfigError, StorageError
from tastemaker.labelling import accounts, batches
from tastemaker.labelling.project import open_project
from tastemaker.labelling.serving import (
    SERVER_FILE,
    Serving,
    address_of,
    announced,
    hosts_of,
    login_link,
    served_by,
    server_of,
)
from tastemaker.labelling.settings import Labelling
from tastemaker.web.hosts import is_known
from tastemaker.web.listening import listen


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_token_is_made_once_and_its_owners_alone(tmp_path):
    first = accounts.admin_token(tmp_path)
    path = tmp_path / accounts.TOKEN_FILE
    assert mode(path) == 0o600
    assert len(first.secret) >= 43
    path.chmod(0o644)  # as a copy may be
    assert accounts.admin_token(tmp_path) == first
    assert mode(path) == 0o600
    path.write_text("\n")
    with pytest.raises(StorageError, match="has no token"):
        accounts.admin_token(tmp_path)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="admin-token"):
        accounts.admin_token(tmp_path)


def test_the_file_that_says_where_a_project_is_served(tmp_path):
    with make_project(tmp_path / "project", Labelling(), 0) as project:
        assert served_by(project.folder) is None
        path = project.folder / SERVER_FILE
        with announced(project, "http://127.0.0.1:1"):
            assert json.loads(path.read_text()) == {"url": "http://127.0.0.1:1", "pid": os.getpid()}
            assert mode(path) == 0o600
            assert served_by(project.folder) == ("http://127.0.0.1:1", os.getpid())
        assert not path.exists()
        path.write_text('{"url": "http://127.0.0.1:2", "pid": 1}')  # a process that runs
        with (
            pytest.raises(ConfigError, match=r"is served already, at http://127\.0\.0\.1:2 by the process 1"),
            announced(project, "http://127.0.0.1:3"),
        ):
            pass
        path.write_text('{"url": "http://127.0.0.1:2", "pid": 4194303}')  # one that was killed
        with announced(project, "http://127.0.0.1:3"):
            assert served_by(project.folder) == ("http://127.0.0.1:3", os.getpid())


def test_names_and_addresses(tmp_path):
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address_of(Serving(), listener) == f"http://127.0.0.1:{port}"
        assert address_of(Serving("0.0.0.0"), listener) == f"http://127.0.0.1:{port}"
        assert address_of(Serving("::1"), listener) == f"http://[::1]:{port}"
    assert login_link("http://a", TOKEN) == f"http://a/login#token={TOKEN.secret}"
    assert not is_known("labels.example.org", hosts_of(Serving()))
    assert is_known("labels.example.org", hosts_of(Serving(public_url="https://labels.example.org:444")))
    assert is_known("192.168.1.5", hosts_of(Serving("0.0.0.0")))
    assert not is_known("192.168.1.5", hosts_of(Serving()))


@pytest.mark.parametrize(("public", "counted"), [(None, "127.0.0.1"), ("http://labels.example.org", "203.0.113.9")])
def test_only_a_proxy_is_believed_who_the_visitor_is(tmp_path, public, counted):
    """By a real server and socket: what X-Forwarded-For says decides about the limit of failed log-ins."""
    with make_project(tmp_path / "project", Labelling(), 0) as project, listen("127.0.0.1", 0) as listener:
        server = server_of(project, TOKEN, Serving(public_url=public))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        address = address_of(Serving(), listener)
        headers = {"x-forwarded-for": "203.0.113.9"}
        try:
            answer = httpx.post(f"{address}/login", data={"token": "wrong"}, headers=headers, timeout=20)
        finally:
            server.should_exit = True
            thread.join(20)
        assert answer.status_code == 403
        assert "server" not in answer.headers
        known = server.config.app.state.context.attempts._failures  # pyright: ignore
        assert ("address", counted) in known


def run_serve(monkeypatch, argv: list[str]) -> int:
    """The command, whose server ends at once."""
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    return label_serve.run(argv)


def test_serve_prints_the_link_once(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "project"
    make_project(folder, Labelling(), 1).close()
    assert run_serve(monkeypatch, [str(folder), "--port", "0"]) == 0
    out = capsys.readouterr().out
    token = accounts.admin_token(folder)
    assert out.count(token.secret) == 1
    assert f"/login#token={token.secret}" in out
    assert "only this machine reaches it" in out
    assert not (folder / SERVER_FILE).exists()
    assert run_serve(monkeypatch, [str(folder), "--port", "0", "--without-link"]) == 0
    assert token.secret not in capsys.readouterr().out
    run_serve(monkeypatch, [str(folder), "--port", "0", "--host", "0.0.0.0"])
    assert "who listens on the network can read passwords" in capsys.readouterr().out
    run_serve(monkeypatch, [str(folder), "--port", "0", "--public-url", "https://labels.example.org/"])
    assert f"https://labels.example.org/login#token={token.secret}" in capsys.readouterr().out


def test_wrong_inputs_are_one_sentence(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "project"
    make_project(folder, Labelling(), 1).close()

    def said(*argv: str) -> str:
        code = main(["label", "serve", *argv])
        captured = capsys.readouterr()
        assert code in (2, 4)
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("tastemaker: ")
        return captured.err

    assert "give the folder of a project" in said()
    assert "is no labelling project" in said(str(tmp_path / "none"))
    assert "--port is 70000" in said(str(folder), "--port", "70000")
    assert "is none: give one such as https://" in said(str(folder), "--public-url", "labels")
    with listen("127.0.0.1", 0) as taken:
        assert "cannot listen at 127.0.0.1 port" in said(str(folder), "--port", str(taken.getsockname()[1]))
    assert "cannot listen at 203.0.113.1" in said(str(folder), "--host", "203.0.113.1")
    description = json.loads((folder / "project.json").read_text())
    (folder / "project.json").write_text(
        json.dumps(description | {"database": "postgresql://user:pw@127.0.0.1:1/none"})
    )
    message = said(str(folder))
    assert "failed" in message
    assert "pw" not in message
    assert main(["label", "sirve"]) == 2
    assert "did you mean 'serve'?" in capsys.readouterr().err
    assert main(["label"]) == 0
    assert "  serve " in capsys.readouterr().out


# ---------------------------------------------------------------- the administrators' pages


def test_the_overview_has_the_figures(tmp_path):
    """Three of four tasks by ann, who prefers the image with the lower position."""
    with served(tmp_path / "project", Labelling(), tasks=4) as app:
        admin = app.client("admin")
        assert "Nobody has finished a task yet" in admin.get("/admin").text
        ann = add_user(app.project, "ann <a>")
        now = time.time()
        for one in claimed(app.project, ann, 3, now):
            judged(app.project, ann, one, now)
        page = admin.get("/admin").text
        assert "<dd>3 of 4</dd>" in page  # tasks, and answers
        assert '<th scope="row">ann &lt;a&gt;</th>' in page
        assert '<td class="figure" data-label="Tasks">3</td>' in page
        assert '<td class="figure" data-label="Votes">3</td>' in page
        # One task is left, at 3 tasks in the last hour: 20 minutes.
        assert "<dd>20 minutes</dd>" in page
        assert "it needs answers of two labelers" in page
        found = admin.get("/api/stats").json()
        assert found["progress"]["tasks_done"] == 3
        assert found["labelers"][0]["name"] == "ann <a>"


def test_an_administrator_withdraws_a_batch(tmp_path):
    with served(tmp_path / "project", Labelling(mode="rate"), tasks=0) as app:
        admin = app.client("admin")
        assert "There are none yet" in admin.get("/admin/batches").text
        sent = batches.submit(app.project, ["a", "b"], [image(1), image(2)], 0.0)
        page = admin.get("/admin/batches").text
        path = f"/admin/batches/{sent.key}/withdraw"
        assert f'action="{path}"' in page
        assert '<td class="figure" data-label="Tasks labelled">0 of 2</td>' in page
        assert admin.post(path).headers["location"] == "/admin/batches"
        page = admin.get("/admin/batches").text
        assert '<td data-label="State">withdrawn</td>' in page
        assert path not in page
        assert claimed(app.project, app.user("ann"), 5, time.time()) == []
        unknown = admin.post(f"/admin/batches/{'0' * 64}/withdraw")
        assert (unknown.status_code, "There is no batch of this key." in unknown.text) == (404, True)


def test_settings_are_changed_at_once_and_kept(tmp_path):
    with served(tmp_path / "project", Labelling(), tasks=2) as app:
        admin, ann = app.client("admin"), app.client("ann")
        given = {
            "title": "Cats", "question": "Which cat?", "instructions": "# Look\r\n\r\nat *ears*", "overlap": "3",
            "gold_rate": "0.1", "repeat_rate": "0.2", "lease_minutes": "5",
        }  # fmt: skip
        assert admin.post("/admin/settings", data=given).status_code == 303
        shown = ann.get("/api/me").json()["project"]
        assert (shown["title"], shown["question"], shown["lease_minutes"]) == ("Cats", "Which cat?", 5.0)
        assert shown["instructions_html"] == "<h1>Look</h1>\n<p>at <em>ears</em></p>\n"
        for wrong in ({"overlap": "0"}, {"gold_rate": "0.9"}, {"title": "x" * 300}, {"lease_minutes": "0"}):
            refused = admin.post("/admin/settings", data=given | wrong)
            assert refused.status_code == 400, wrong
            assert 'role="alert"' in refused.text
            assert 'value="Which cat?"' in refused.text  # what was entered stays
        for wrong in ({"overlap": "x"}, {"gold_rate": ""}):
            assert admin.post("/admin/settings", data=given | wrong).status_code == 422
        for wrong in ("nan", "inf"):
            assert admin.post("/admin/settings", data=given | {"lease_minutes": wrong}).status_code in (400, 422)
        with open_project(app.project.folder) as again:
            assert again.settings.overlap == 3
            assert again.settings.repeat_rate == 0.2
            assert again.settings.instructions == "# Look\n\nat *ears*"


def test_exports_are_downloaded(tmp_path):
    with served(tmp_path / "project", Labelling(), tasks=4) as app:
        ann, now = add_user(app.project, "ann"), time.time()
        admin = app.client("admin")
        nothing = admin.post("/admin/export", data={"format": "hpdv2"})
        assert nothing.status_code == 400
        assert "There is nothing to export" in nothing.text
        for one in claimed(app.project, ann, 4, now):
            judged(app.project, ann, one, now)
        whole = admin.post("/admin/export", data={"format": "native"})
        assert whole.headers["content-type"] == "application/zip"
        assert whole.headers["content-disposition"].startswith('attachment; filename="native-')
        with zipfile.ZipFile(io.BytesIO(whole.content)) as archive:
            assert archive.testzip() is None
            names = archive.namelist()
            text = b"".join(archive.read(name) for name in names if name.endswith(("json", "jsonl")))
        assert sum(name.endswith(".png") for name in names) == 8
        assert b'"ann"' in text
        coded = admin.post("/admin/export", data={"format": "native", "pseudonyms": "true"})
        with zipfile.ZipFile(io.BytesIO(coded.content)) as archive:
            text = b"".join(archive.read(n) for n in archive.namelist() if n.endswith(("json", "jsonl")))
        assert b'"ann"' not in text
        assert admin.post("/admin/export", data={"format": "none"}).status_code == 400
