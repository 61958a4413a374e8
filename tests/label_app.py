"""A labelling app for tests that says of a batch what it is told to; the real one is in tests/labelling."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tastemaker.rewards.serving.protocol import Limits, read_json

PROJECT = {"protocol": 1, "project": "1234", "title": "Images", "mode": "rate", "images": 1, "overlap": 1}
KEY = "0" * 64

Reply = Callable[[BaseHTTPRequestHandler], None]


def send(handler: BaseHTTPRequestHandler, content: Any, status: int = 200) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    with suppress(OSError):
        handler.wfile.write(body)


class LabelApp:
    """Answers the n-th look at a batch with `says(n)`, counted from 0: a count of labelled tasks, or what `send` does.

    The rewards are 1, 1/2, 1/3, ... when all is labelled.
    """

    def __init__(
        self, says: Callable[[int], int | Reply] = lambda n: 10**6, project: dict[str, Any] | None = None
    ) -> None:
        self.asked: list[tuple[str, str]] = []
        self.seen: list[dict[str, str]] = []
        self.sent: list[Any] = []
        self.looks = 0
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with lock:
                    outer.asked.append((self.command, self.path))
                    outer.seen.append(dict(self.headers))
                    if self.command == "POST":
                        outer.sent.append(read_json(body, Limits()))
                    info = (self.command, self.path) == ("GET", "/api/batches")
                    number, outer.looks = outer.looks, outer.looks + (not info)
                self.close_connection = True
                with suppress(OSError):
                    if info:
                        send(self, PROJECT | (project or {}))
                        return
                    reply = says(number)
                    if callable(reply):
                        reply(self)
                        return
                    count = len(outer.sent[-1].prompts)
                    done = reply >= count
                    rewards = [1 / (index + 1) for index in range(count)] if done else None
                    state = "finished" if done else "waiting"
                    labelled = min(reply, count)
                    send(self, {"key": KEY, "state": state, "tasks": count, "labelled": labelled, "rewards": rewards})

            do_GET = do_POST = _answer

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> LabelApp:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)
