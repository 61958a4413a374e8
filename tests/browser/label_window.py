"""The labelling page of a project in a browser window, and a server behind it that can be stopped and started again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
import uvicorn
from browsing import Watched
from fastapi import FastAPI
from playwright.sync_api import Browser, BrowserContext, Page
from tests.label_client import Served, served

from tastemaker.labelling.project import NewTask, add_tasks
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import JudgementRow
from tastemaker.web.listening import http_server, listen

PATIENCE = 20.0
"""Seconds to wait for what comes soon on a machine that has nothing else to do."""


class Server:
    """The HTTP server of an app. Stopped and started again, it is at the same port."""

    def __init__(self, app: FastAPI) -> None:
        self._app, self._port = app, 0
        self.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._listener = listen("127.0.0.1", self._port)
        self._port = self._listener.getsockname()[1]
        self._server: uvicorn.Server = http_server(self._app, 500)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})
        self._thread.start()

    def stop(self) -> None:
        """Ends the server; connections to it are then refused."""
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


@dataclass(frozen=True)
class Window:
    """A browser's window at an app."""

    page: Page
    context: BrowserContext
    app: Served
    server: Server

    def open_label(self) -> None:
        """Opens the labelling page, and waits for a task."""
        self.page.goto(f"{self.server.address}/label")
        self.page.wait_for_selector("body[data-task]")


@contextmanager
def window(
    browser: Browser,
    folder: Path,
    settings: Labelling,
    tasks: int | Sequence[NewTask] = 4,
    user: str | None = "ann",
    allowed: tuple[str, ...] = (),
    **options,
) -> Iterator[Window]:
    """A new project's app with an empty page, logged in as a user. Fails where a page writes an error that has none of
    the `allowed` texts in it. `options` are those of the browser's context."""
    count = tasks if isinstance(tasks, int) else 0
    with served(folder, settings, count) as app:
        if not isinstance(tasks, int):
            add_tasks(app.project, tasks)
        server = Server(app.app)
        context = browser.new_context(**{"reduced_motion": "reduce", **options})
        if user is not None:
            cookie = {"name": app.app.state.context.cookie, "value": app.cookie(user), "url": server.address}
            context.add_cookies([cookie])  # type: ignore[list-item]
        watched = Watched(context)
        try:
            yield Window(watched.page, context, app, server)
            assert [error for error in watched.errors if not any(text in error for text in allowed)] == []
        finally:
            context.close()
            server.stop()


@contextmanager
def opened(browser: Browser, folder: Path, settings: Labelling, *args, **options) -> Iterator[Window]:
    """`window` with the labelling page, once it shows a task."""
    with window(browser, folder, settings, *args, **options) as found:
        found.open_label()
        yield found


def press(page: Page, key: str) -> None:
    """A key, once the images are painted, and later than a bouncing one would come."""
    settle(page)
    page.keyboard.press(key)


def settle(page: Page) -> None:
    """Waits until what is shown has been painted, and a key is an answer to it."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 60)))")


def until(page: Page, expression: str) -> None:
    """Waits until an expression is true. Playwright's own way needs eval, which the page's policy forbids."""
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"still false: {expression}"
        time.sleep(0.02)


def until_saved(page: Page) -> None:
    """Waits until the page says that all answers are saved."""
    until(page, "document.getElementById('saved').dataset.state === 'saved'")


def vote(page: Page, key: str) -> None:
    """A key that finishes the task in hand, and the images of the next one, or the end."""
    before = page.get_attribute("body", "data-task")
    press(page, key)
    until(page, f"document.body.dataset.task !== {before!r}")


def rows_of(app: Served) -> list[JudgementRow]:
    """The judgements of the project, in the order in which they were stored."""
    with app.project.database.read() as session:
        rows = list(session.scalars(sa.select(JudgementRow).order_by(JudgementRow.id)))
        session.expunge_all()
    return rows


def stored(app: Served, count: int) -> list[JudgementRow]:
    """The judgements of the project, once there are `count` of them."""
    deadline = time.monotonic() + PATIENCE
    while len(rows := rows_of(app)) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(rows) == count
    return rows
