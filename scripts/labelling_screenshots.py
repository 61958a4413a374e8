"""The screenshots of docs/guides/labelling.md: drawn images on the labelling page, in the system's Chromium.

python scripts/labelling_screenshots.py
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from playwright.sync_api import Browser, Page

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "browser"))

from browsing import chromium
from tests.drawn_tasks import drawn_tasks
from tests.label_client import served

from tastemaker.labelling.project import add_tasks
from tastemaker.labelling.settings import Labelling
from tastemaker.web.listening import listen

IMAGES = Path(__file__).parent.parent / "docs" / "guides" / "images"
QUESTION = "Which image shows the prompt better?"
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@contextmanager
def opened(browser: Browser, settings: Labelling, **options) -> Iterator[Page]:
    """The page of a new project of drawn tasks."""
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder) / "p", settings, tasks=0) as app,
        listen("127.0.0.1", 0) as listener,
    ):
        add_tasks(app.project, drawn_tasks(settings, 30, 256, seed=3))
        server = uvicorn.Server(uvicorn.Config(app.app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            context = browser.new_context(**{"viewport": WIDE, "reduced_motion": "reduce", **options})
            context.add_cookies([{"name": app.app.state.context.cookie, "value": app.cookie("ann"), "url": address}])
            page = context.new_page()
            page.goto(f"{address}/label")
            page.wait_for_selector("body[data-task]")
            yield page
            context.close()
        finally:
            server.should_exit = True
            thread.join()


def press(page: Page, *keys: str) -> None:
    """Keys, slowly enough that each is an answer to what it is shown."""
    for key in keys:
        page.wait_for_timeout(250)
        page.keyboard.press(key)
    page.wait_for_timeout(400)


def main() -> None:
    """Writes the images."""
    IMAGES.mkdir(exist_ok=True)

    def save(page: Page, name: str) -> None:
        page.screenshot(path=IMAGES / f"labelling-{name}.png")

    pair = Labelling(mode="pair", title="Shapes", question=QUESTION)
    rank = Labelling(mode="rank", title="Shapes", question=QUESTION)
    best = Labelling(mode="best", title="Shapes")
    with chromium() as browser:
        with opened(browser, pair) as page:
            press(page, "ArrowLeft", "ArrowRight")
            save(page, "pair")
        with opened(browser, rank) as page:
            press(page, "ArrowLeft", "ArrowRight", "ArrowLeft")
            save(page, "rank")
            for _ in range(8):
                if page.get_attribute("body", "data-view") == "review":
                    break
                press(page, "ArrowLeft")
            save(page, "review")
        with opened(browser, best) as page:
            save(page, "best")
        with opened(browser, pair, viewport=PHONE, has_touch=True, is_mobile=True) as page:
            save(page, "phone")
        with opened(browser, rank, color_scheme="dark") as page:
            press(page, "ArrowLeft", "ArrowRight")
            save(page, "dark")


if __name__ == "__main__":
    main()
