"""The labelling page in a browser, on the real app: by keys alone, undone, rearranged, reloaded, and by axe."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from label_window import opened, press, stored, until, until_saved

from tastemaker.labelling.judgements import read_judgements
from tastemaker.labelling.ranking import state
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Assignment

LABELLINGS = {
    "pair": Labelling(mode="pair", instructions="Choose the **better** one."),
    "rank": Labelling(mode="rank"),
    "best": Labelling(mode="best"),
    "rate": Labelling(mode="rate", images=2),
}


def test_ranking_by_keys_alone_with_a_reload_in_the_middle(browser, tmp_path):
    with opened(browser, tmp_path / "p", LABELLINGS["rank"]) as found:
        page, app = found.page, found.app
        first = page.get_attribute("body", "data-task")
        press(page, "ArrowDown")
        press(page, "ArrowLeft")
        stored(app, 2)
        page.reload()
        page.wait_for_selector(f"body[data-task='{first}']")
        assert "comparison 3" in page.text_content("#step")
        while page.get_attribute("body", "data-view") == "compare":
            press(page, "ArrowLeft")
            page.wait_for_timeout(30)
        before = page.locator("#places .place").count()
        press(page, "]")
        assert page.locator("#places .place").count() != before
        press(page, "Enter")
        until(page, f"document.body.dataset.task !== '{first}'")
        until_saved(page)
        with app.project.database.read() as session:
            row = session.get(Assignment, int(first))
            said = state(app.project.settings, row.presentation, read_judgements(session, row.id))
            assert row.finished_at is not None
            assert said.complete


def test_undo_goes_back_over_tasks(browser, tmp_path):
    with opened(browser, tmp_path / "p", LABELLINGS["pair"]) as found:
        page, app = found.page, found.app
        first = page.get_attribute("body", "data-task")
        press(page, "ArrowLeft")
        until(page, f"document.body.dataset.task !== '{first}'")
        press(page, "z")
        page.wait_for_selector(f"body[data-task='{first}']")
        press(page, "ArrowRight")
        kinds = [(row.kind, row.outcome) for row in stored(app, 3)]
        assert kinds == [("compare", "left"), ("undo", None), ("compare", "right")]


def test_a_double_click_is_one_answer(browser, tmp_path):
    with opened(browser, tmp_path / "p", LABELLINGS["pair"]) as found:
        page, app = found.page, found.app
        page.wait_for_timeout(150)
        page.dblclick("#answers [data-act='left']")
        page.wait_for_timeout(300)
        stored(app, 1)


def test_dragging_changes_the_order(browser, tmp_path):
    with opened(browser, tmp_path / "p", LABELLINGS["rank"]) as found:
        page, app = found.page, found.app
        press(page, "ArrowLeft")
        until(page, "document.querySelectorAll('#places .place').length === 2")
        images = [thumb.get_attribute("data-image") for thumb in page.query_selector_all("#places .thumb")]
        one, two = (thumb.bounding_box() for thumb in page.query_selector_all("#places .place"))
        page.mouse.move(two["x"] + two["width"] / 2, two["y"] + two["height"] / 2)
        page.mouse.down()
        page.mouse.move(one["x"] + 2, one["y"] + one["height"] / 2, steps=5)
        page.mouse.up()
        assert [t.get_attribute("data-image") for t in page.query_selector_all("#places .thumb")] == images[::-1]
        assert page.locator("#conflicts").is_visible()
        assert stored(app, 2)[1].order_of_images == [[int(image)] for image in images[::-1]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("mode", list(LABELLINGS))
def test_axe_finds_nothing(browser, tmp_path, mode, scheme):
    with opened(browser, tmp_path / "p", LABELLINGS[mode], color_scheme=scheme) as found:
        for key in (None, "h", "?"):
            if key:
                found.page.keyboard.press(key)
            # The script of axe is put in by the browser's tools, which the page's policy does not bind.
            results = Axe().run(found.page, options={"runOnly": ["color-contrast"]} if scheme == "dark" else {})
            assert results.violations_count == 0, results.generate_report()
