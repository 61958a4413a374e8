"""The screenshots of docs/guides/labelling.md: drawn images on the labelling page, in the system's Chromium.

python scripts/labelling_screenshots.py
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "browser"))

import label_window
from browsing import chromium
from tests.drawn_tasks import drawn_tasks

from tastemaker.labelling.settings import Labelling

IMAGES = Path(__file__).parent.parent / "docs" / "guides" / "images"
QUESTION = "Which image shows the prompt better?"
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@contextmanager
def opened(browser: Browser, settings: Labelling, **options) -> Iterator[Page]:
    """The page of a new project of drawn tasks."""
    tasks = drawn_tasks(settings, 30, 256, seed=3)
    with (
        tempfile.TemporaryDirectory() as folder,
        label_window.opened(browser, Path(folder) / "p", settings, tasks, **{"viewport": WIDE, **options}) as window,
    ):
        yield window.page


def answer(page: Page, count: int) -> None:
    """Comparisons, answered as people would: of drawn images the earlier one in its task has fewer faults."""
    for _ in range(count):
        if page.get_attribute("body", "data-view") == "review":
            return
        left, right = (int(figure.get_attribute("data-image") or 0) for figure in page.query_selector_all("figure"))
        label_window.press(page, "ArrowLeft" if left < right else "ArrowRight")
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
            answer(page, 2)
            save(page, "pair")
        with opened(browser, rank) as page:
            answer(page, 3)
            save(page, "rank")
            answer(page, 8)
            label_window.until_saved(page)
            save(page, "review")
        with opened(browser, best) as page:
            save(page, "best")
        with opened(browser, pair, viewport=PHONE, has_touch=True, is_mobile=True) as page:
            save(page, "phone")
        with opened(browser, rank, color_scheme="dark") as page:
            answer(page, 2)
            save(page, "dark")


if __name__ == "__main__":
    main()
