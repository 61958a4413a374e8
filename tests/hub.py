"""A Hugging Face hub of one folder on this machine, for what the client says about it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHA = "0123456789" * 4
REFUSALS = {
    "gated/model": (403, "GatedRepo"), "private/model": (401, "RepoNotFound"), "absent/model": (404, "RepoNotFound"),
    "forbidden/model": (403, ""), "faulty/model": (500, ""),
}  # fmt: skip
"""What the hub answers for a repository: status and X-Error-Code."""


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub where `folder` is every repository but those of REFUSALS, and the files asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0].strip("/").removeprefix("api/models/")
            parts = path.split("/")
            name, rest = "/".join(parts[:2]), parts[2:]
            if name in REFUSALS:
                status, code = REFUSALS[name]
                return self.send(status, b"{}", {"X-Error-Code": code} if code else {}, body)
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            names = {file.relative_to(folder).as_posix(): file for file in files}
            if rest[:1] == ["resolve"]:
                file = names.get("/".join(rest[2:]))
                if file is None:
                    return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
                asked.append("/".join(rest[2:]))
                etag = f'"{sha1(file.read_bytes()).hexdigest()}"'
                return self.send(200, file.read_bytes(), {"ETag": etag, "X-Repo-Commit": SHA}, body)
            if rest[:1] == ["tree"]:
                tree = [
                    {
                        "type": "file",
                        "path": path,
                        "size": file.stat().st_size,
                        "oid": sha1(file.read_bytes()).hexdigest(),
                    }
                    for path, file in names.items()
                ]
                return self.send(200, json.dumps(tree).encode(), {}, body)
            if rest and rest[:1] != ["revision"]:
                return self.send(404, b"{}", {}, body)
            info = {"id": name, "sha": SHA, "siblings": [{"rfilename": path} for path in names]}
            return self.send(200, json.dumps(info).encode(), {}, body)

        def send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()
