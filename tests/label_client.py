"""The labelling app in this process, and clients of each role."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from tastemaker.labelling import accounts
from tastemaker.labelling.app.app import make_app
from tastemaker.labelling.project import Project
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import User
from tastemaker.web.tokens import Token
from tests.label_projects import make_project

ADDRESS = "http://127.0.0.1:8001"
TOKEN = Token("test-token-" + "x" * 20)
PASSWORD = "correct horse"


@dataclass(frozen=True)
class Served:
    """A project with its app."""

    project: Project
    app: FastAPI
    users: dict[str, int] = field(default_factory=dict)

    def client(self, user: str | None = None, **options: Any) -> TestClient:
        """A client that is logged in as a user, or as nobody. It does not follow redirects."""
        options = {"base_url": ADDRESS, "follow_redirects": False} | options
        client = TestClient(self.app, **options)
        if user is not None:
            client.cookies.set(self.app.state.context.cookie, self.cookie(user))
        return client

    def cookie(self, user: str, began: float | None = None) -> str:
        """A new session's cookie."""
        number = self.user(user)
        with self.project.database.write() as session:
            return accounts.begin_session(session, number, time.time() if began is None else began)

    def user(self, name: str, role: str = "labeler") -> int:
        """The id of a user, who is made where there is none. `admin` is an administrator."""
        if name not in self.users:
            with self.project.database.write() as session:
                role = "admin" if name == "admin" else role
                row = User(name=name, role=role, password_hash="none", disabled=False, keys={}, created=0.0)
                session.add(row)
                session.flush()
                self.users[name] = row.id
        return self.users[name]


@contextmanager
def served(folder: Path, settings: Labelling | None = None, tasks: int = 4, **options: Any) -> Iterator[Served]:
    """The app of a new project."""
    with make_project(folder, settings or Labelling(), tasks) as project:
        yield Served(project, make_app(project, TOKEN, **options))
