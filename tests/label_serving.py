"""The real labelling app of a project, in a thread of the tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from tastemaker.labelling.accounts import admin_token, invite
from tastemaker.labelling.project import Project, open_project
from tastemaker.labelling.serving import Serving, address_of, announced, server_of
from tastemaker.labelling.simulate import Crowd
from tastemaker.web.listening import listen


@dataclass(frozen=True)
class Served:
    """A project that is being served."""

    project: Project
    url: str
    token: str
    """The administrator's."""
    server: uvicorn.Server

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def crowd(self, count: int, seed: int = 0) -> Crowd:
        """So many new labelers."""
        with self.project.database.write() as session:
            token = invite(session, "labeler", "test", count, time.time() + 3600, time.time())
        names = [f"labeler {seed}-{index}" for index in range(count)]
        return Crowd(self.url, names, [f"password of {name}" for name in names], token)


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[Served]:
    """Serves the project in a folder, as `tastemaker label serve` does."""
    with open_project(folder) as project, listen("127.0.0.1", port) as listener:
        token, settings = admin_token(folder), Serving()
        address = address_of(settings, listener)
        with announced(project, address):
            server = server_of(project, token, settings)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            try:
                yield Served(project, address, token.secret, server)
            finally:
                server.should_exit = True
                thread.join(20)
