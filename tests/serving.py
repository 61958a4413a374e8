"""Servers on 127.0.0.1 for the tests: the real one in a thread, and one that misbehaves as it is told."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tastemaker.rewards.base import as_reward
from tastemaker.rewards.combination import of_images
from tastemaker.rewards.identity import identify
from tastemaker.rewards.registry import load_reward
from tastemaker.rewards.serving.protocol import JSON, READ, Identity, Limits, response
from tastemaker.rewards.serving.server import Service, server
from tastemaker.rewards.vlm.settings import Vlm
from tastemaker.web.hosts import known_hosts
from tastemaker.web.listening import listen

GOOD = Identity("redness", "1")


@contextmanager
def served(name_or_reward: Any, port: int = 0, vlm: Vlm | None = None, **options: Any) -> Iterator[str]:
    """The address of a real server of this reward."""
    named = isinstance(name_or_reward, str)
    reward = of_images(load_reward(name_or_reward, vlm=vlm)) if named else as_reward(name_or_reward)
    identity = identify(name_or_reward, reward) if named else GOOD
    listener = listen("127.0.0.1", port)
    running = server(Service(reward, identity, **({"hosts": known_hosts("127.0.0.1")} | options)))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(20)
        listener.close()


def redness(x, prompts):
    """A reward for servers that misbehave; no image has 0."""
    return 1 + x[:, 0].mean(dim=(1, 2))


Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]
"""What is done with a request to /score, given what a good server would answer."""


def good(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", JSON)
    handler.send_header("Content-Length", str(len(body)))
    handler.send_header("Connection", "close")  # else a client may ask again on the connection while it is closed
    handler.end_headers()
    handler.wfile.write(body)


def raw(body: bytes, status: int = 200, **headers: str) -> Answer:
    def send(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
        handler.send_response(status)
        for name, value in ({"Content_Length": str(len(body)), "Connection": "close"} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return send


def changed(**changes: Any) -> Answer:
    """A good answer with other rewards, or as another reward's; a function is applied to the rewards."""

    def send(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
        new = {key: value(content[key]) if callable(value) else value for key, value in changes.items()}
        good(handler, content | new)

    return send


def cut(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
    """Half a body of a length that was promised whole, at a place where a shorter list of numbers could be read."""
    body = json.dumps(content).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.wfile.flush()
    handler.connection.shutdown(2)


def hang_up(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
    handler.connection.shutdown(2)


def slow(seconds: float) -> Answer:
    def send(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
        time.sleep(seconds)
        good(handler, content)

    return send


def drip(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
    """A byte now and then, so that no read ever times out."""
    body = json.dumps(content).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    for byte in body[:200]:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.05)


class Scripted:
    """A server whose n-th answer is `script(n)`, counted from 0; its own reward is `redness`."""

    def __init__(self, script: Callable[[int], Answer] | Sequence[Answer], port: int = 0) -> None:
        self.script = script if callable(script) else lambda n: script[n] if n < len(script) else good
        self.asked: list[Any] = []
        self.seen: list[dict[str, str]] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                good(self, {"protocol": 1, "reward": GOOD.reward, "version": GOOD.version})
                self.close_connection = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                asked = READ[self.headers["Content-Type"]](body, Limits())
                with lock:
                    number = len(outer.asked)
                    outer.asked.append(asked)
                    outer.seen.append(dict(self.headers))
                self.close_connection = True
                # Who asked may be gone by now.
                with suppress(OSError):
                    outer.script(number)(self, response(redness(asked.x, asked.prompts), GOOD))

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def port(self) -> int:
        return self.server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """From now on nobody listens."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def port_of(url: str) -> int:
    match = re.search(r":(\d+)$", url)
    assert match
    return int(match[1])
