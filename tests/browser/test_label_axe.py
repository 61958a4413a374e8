"""All pages of the labelling app and all states of its labelling page, by axe, at two widths, light and dark."""

from __future__ import annotations

import time

import pytest
from axe_playwright_python.sync_playwright import Axe
from label_window import opened, press, until, vote, window
from playwright.sync_api import Page
from tests.label_projects import claimed, image, judged

from tastemaker.labelling import accounts, batches
from tastemaker.labelling.settings import Labelling

SIZES = ((1280, 800), (390, 844))
LIGHT, DARK = ("light", {}), ("dark", {"runOnly": ["color-contrast"]})
"""Colour schemes with axe's options. The dark colours change the contrast alone, which is the same at both widths."""
INSTRUCTIONS = (
    "# Shapes\n\nChoose the **better** one.\n\n1. Colours\n2. Places\n\n`code` and [a link](https://example.org)"
)


def check(page: Page, what: str) -> None:
    """Fails where axe finds something, or where the page is wider than its window."""
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), f"{what} at {width}"
        for scheme, rules in (LIGHT, DARK) if (width, height) == SIZES[0] else (LIGHT,):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            # The script of axe is put in by the browser's tools, which the page's policy does not bind.
            results = Axe().run(page, options=rules)
            assert results.violations_count == 0, f"{what}, {width}, {scheme}: {results.generate_report()}"
    page.set_viewport_size({"width": SIZES[0][0], "height": SIZES[0][1]})


@pytest.mark.slow
def test_states_of_the_labelling_page(browser, tmp_path):
    settings = Labelling(mode="rank", images=3, transitive=False, instructions=INSTRUCTIONS)
    with opened(browser, tmp_path / "p", settings, 1) as found:
        page = found.page
        assert page.locator("#instructions").is_visible()
        check(page, "instructions")
        page.click("#instructions-close")
        press(page, "?")
        page.click("#change-keys")
        check(page, "keys dialog")
        page.click("#key-left")
        check(page, "a key is asked for")
        page.keyboard.press("Escape")
        page.click("#keys [data-close]")
        page.wait_for_selector("#keys", state="hidden")
        for _ in range(3):  # 0 is better than 1, 1 than 2, and 2 than 0
            left, right = (int(figure.get_attribute("data-image")) for figure in page.query_selector_all("figure"))
            press(page, "ArrowLeft" if (left + 1) % 3 == right else "ArrowRight")
        until(page, "document.body.dataset.view === 'review'")
        assert page.locator("#conflicts-list").is_visible()
        check(page, "review with contradictions")
        vote(page, "Enter")
        until(page, "document.body.dataset.view === 'end'")
        check(page, "end")


def test_pages_before_labelling(browser, tmp_path):
    with window(browser, tmp_path / "p", Labelling(), user=None, allowed=("403", "404")) as found:
        page, address = found.page, found.server.address
        page.goto(f"{address}/login")
        check(page, "login")
        page.click("summary")
        page.fill("#token", "wrong")
        page.click("#token-form button")
        page.wait_for_selector(".problem")
        check(page, "login that failed")
        page.goto(f"{address}/join/none")
        check(page, "invitation that is used up")
        with found.app.project.database.write() as session:
            secret = accounts.invite(session, "labeler", "test", 1, time.time() + 60, time.time())
        page.goto(f"{address}/join/{secret}")
        check(page, "join")
        page.fill("#name", "ann")
        page.fill("#password", "correct horse")
        page.click("text=Join")
        page.wait_for_url("**/label")
        page.wait_for_selector("body[data-task]")
        page.goto(f"{address}/account")
        check(page, "account")


@pytest.mark.slow
def test_administrators_pages(browser, tmp_path):
    settings = Labelling(overlap=2, instructions=INSTRUCTIONS)
    with window(browser, tmp_path / "p", settings, 6, user="admin") as found:
        page, project = found.page, found.app.project
        for number in range(2):
            user = found.app.user(f"labeler {number} with quite a long name, as some have")
            for task in claimed(project, user, 6, time.time()):
                judged(project, user, task, time.time(), lambda image, number=number: image * (1 - 2 * number))
        for number in range(2):
            batches.submit(project, ["a prompt"] * 2, [image(2 * number), image(2 * number + 1)], time.time())
        for name in ("", "/invitations", "/users", "/batches", "/settings", "/export"):
            page.goto(f"{found.server.address}/admin{name}")
            check(page, name or "overview")
            if name == "/invitations":
                page.fill("#note", "the students of the course")
                page.click("text=Make a link")
                check(page, "a new invitation")
            if name == "/users":
                page.click("text=New password")
                check(page, "a new password")
