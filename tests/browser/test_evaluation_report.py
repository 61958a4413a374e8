"""The report of an evaluation in a browser: order, filters, phone width, and what axe says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import Watched

import tastemaker as tm
import tiny

PROMPTS = {"seen": ["a cat", "a dog", "a <b>bird</b>", "a fish"], "unseen": ["a horse", "a cow", "a hen"]}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random models; 28 images of each, by two rewards."""
    folder = tmp_path_factory.mktemp("evaluated")
    models = {name: tiny.folder(folder / name, seed) for seed, name in enumerate(("first", "second"))}
    found = tm.evaluate_models(
        models, folder / "out", prompts=PROMPTS, rewards=["jpeg-compressibility", "colourfulness"], seeds=4, steps=2,
        metrics=["diversity", "speed"],
    )  # fmt: skip
    return found.report


def opened(browser, report: Path, width: int = 1280, scheme: str = "light") -> Watched:
    watched = Watched(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
    watched.page.goto(report.as_uri())
    return watched


def visible(watched: Watched) -> list[tuple[str, list[float]]]:
    """The rows that are shown, in order: prompt set, and the numbers under the images."""
    rows = watched.page.locator(".side:visible")
    return [
        (
            rows.nth(index).get_attribute("data-prompts") or "",
            [float(text.replace("−", "-")) for text in rows.nth(index).locator("figcaption").all_inner_texts()],
        )
        for index in range(rows.count())
    ]


def falls(values: list[float]) -> bool:
    """Whether no value is above the one before it, by more than two rounded numbers may be wrong."""
    return all(after <= before + 0.021 for before, after in pairwise(values)) and values[0] > values[-1]


def test_rows_are_ordered_filtered_and_shown_in_part(browser, report: Path):
    watched = opened(browser, report)
    page = watched.page
    rows = visible(watched)
    assert len(rows) == 12
    assert falls([abs(second - first) for _, (first, second) in rows])
    page.click("#more")
    assert len(visible(watched)) == 28
    assert not page.locator("#more").is_visible()
    page.select_option("#prompts", "unseen")
    assert [name for name, _ in visible(watched)] == ["unseen"] * 12
    page.select_option("#prompts", "")
    for reward in ("colourfulness", "jpeg-compressibility"):
        page.select_option("#reward", label=reward)
        page.select_option("#model", "0")
        page.select_option("#order", "worst")
        assert falls([-values[0] for _, values in visible(watched)]), reward
        page.select_option("#order", "best")
        assert falls([values[0] for _, values in visible(watched)]), reward
    page.select_option("#model", "1")
    page.select_option("#order", "gained")
    assert falls([second - first for _, (first, second) in visible(watched)])
    page.select_option("#order", "lost")
    assert falls([first - second for _, (first, second) in visible(watched)])
    assert watched.errors == []


def test_numbers_change_with_the_reward(browser, report: Path):
    watched = opened(browser, report)
    before = {tuple(values) for _, values in visible(watched)}
    watched.page.select_option("#reward", label="colourfulness")
    after = {tuple(values) for _, values in visible(watched)}
    assert not before & after
    assert all(value >= 0 for values in after for value in values)  # and JPEG sizes are negative


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_within_its_width(browser, report: Path, scheme: str):
    watched = opened(browser, report, 390, scheme)
    assert watched.page.evaluate("document.documentElement.scrollWidth") == 390
    page = watched.page
    assert page.locator("text=a <b>bird</b>").count() > 0  # a prompt is text
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(246, 247, 249)"
    assert dark == (scheme == "dark")
    images = page.locator(".side:visible img")
    assert images.count() == 24
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth === 32)")
    assert watched.errors == []


@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(browser, report: Path, width: int):
    watched = opened(browser, report, width)
    found = Axe().run(watched.page)
    assert found.violations_count == 0, found.generate_report()


def test_nothing_is_fetched(browser, report: Path):
    context = browser.new_context()
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    context.new_page().goto(report.as_uri())
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
