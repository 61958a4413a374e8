"""What the routes of the labelling app share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from fastapi import FastAPI

from tastemaker.labelling.app.attempts import Attempts
from tastemaker.labelling.project import Project
from tastemaker.labelling.settings import Labelling
from tastemaker.web.tokens import Token

PASSWORDS_AT_ONCE = 2
"""Passwords that are checked at once: argon2 takes 64 MiB for each."""


@dataclass
class Context:
    """The project that is served. Its settings change when an administrator changes them."""

    project: Project
    token: Token
    """The administrator's."""
    secure: bool
    """Whether browsers reach the app by https alone."""
    address: str | None = None
    """Where browsers reach it, such as http://127.0.0.1:8001; None takes what each request says."""
    attempts: Attempts = field(default_factory=Attempts)
    """Failed log-ins."""
    changing: threading.Lock = field(default_factory=threading.Lock)
    """Held by who changes the settings."""
    hashing: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(PASSWORDS_AT_ONCE))

    @property
    def settings(self) -> Labelling:
        """The project's settings now."""
        return self.project.settings

    @property
    def cookie(self) -> str:
        """The session's cookie. Browsers share cookies between ports, and so between projects of one machine."""
        name = f"tastemaker-{self.project.uuid[:8]}"
        return f"__Host-{name}" if self.secure else name


def context_of(app: FastAPI) -> Context:
    """The context of an application of `make_app`."""
    return app.state.context
