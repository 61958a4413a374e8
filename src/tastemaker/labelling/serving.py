"""Serving a labelling project: the server, and the file that says where it is."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from tastemaker.errors import ConfigError, StorageError
from tastemaker.labelling.accounts import admin_token
from tastemaker.labelling.app.app import make_app
from tastemaker.labelling.project import Project
from tastemaker.web.hosts import host_name, known_hosts, machine_hosts
from tastemaker.web.listening import http_server, listen, shown_host
from tastemaker.web.tokens import Token

SERVER_FILE = "server.json"
"""In the project's folder while it is served: where, and by which process."""
CONCURRENT = 500
"""Requests and idle connections at once; more are refused with status 503."""


@dataclass(frozen=True)
class Serving:
    """How a project is served."""

    host: str = "127.0.0.1"
    """Where it listens."""
    public_url: str | None = None
    """Where a reverse proxy shows it (`web.hosts.checked_public_url`)."""
    proxies: str = "127.0.0.1,::1"
    """Addresses of the proxy, whose word on the visitor's address is taken; only with `public_url`."""


def hosts_of(serving: Serving) -> frozenset[str]:
    """The names by which the server may be called."""
    own = known_hosts(serving.host) or machine_hosts(serving.host)
    if serving.public_url is None:
        return own
    shown = host_name(serving.public_url.partition("://")[2])
    assert shown is not None, "checked before"
    return own | {shown}


def address_of(serving: Serving, listener: socket.socket) -> str:
    """Where browsers on this machine reach a server on this socket."""
    port = listener.getsockname()[1]
    host = "127.0.0.1" if serving.host == "0.0.0.0" else "::1" if serving.host == "::" else serving.host
    return f"http://{shown_host(host)}:{port}"


def server_of(project: Project, token: Token, serving: Serving) -> uvicorn.Server:
    """The HTTP server of a project, to be run on a socket of `web.listening.listen`."""
    app = make_app(project, token, hosts=hosts_of(serving), public_url=serving.public_url)
    return http_server(app, CONCURRENT, None if serving.public_url is None else serving.proxies)


@contextmanager
def announced(project: Project, address: str) -> Iterator[None]:
    """The file that says where a project is served, for as long as the block runs; its owner alone can read it.

    Raises ConfigError where the project is served already, and StorageError.
    """
    path = project.folder / SERVER_FILE
    found = served_by(project.folder)
    if found is not None and found[1] != os.getpid():
        raise ConfigError(f"{project.folder} is served already, at {found[0]} by the process {found[1]}")
    content = json.dumps({"url": address, "pid": os.getpid()}).encode() + b"\n"
    try:
        path.unlink(missing_ok=True)  # as a process leaves it that was killed
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def served_in_thread(project: Project, serving: Serving, port: int = 0) -> Iterator[str]:
    """Serves a project in a thread while the block runs; gives its address. Raises ConfigError where the port is taken.

    Port 0 takes a free one.
    """
    token = admin_token(project.folder)
    with listen(serving.host, port) as listener:
        address = address_of(serving, listener)
        with announced(project, address):
            server = server_of(project, token, serving)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            try:
                yield address
            finally:
                server.should_exit = True
                thread.join(20)


def login_link(address: str, token: Token) -> str:
    """The address that logs the administrator in. What stands after `#` is sent to no server, and so in no log."""
    return f"{address}/login#token={token.secret}"


def served_by(folder: Path) -> tuple[str, int] | None:
    """The address and the process by which a project is served on this machine; None where it is not."""
    try:
        content = json.loads((folder / SERVER_FILE).read_text(encoding="utf-8"))
        address, process = str(content["url"]), int(content["pid"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return (address, process) if _is_running(process) else None


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
