"""A run's report and a comparison of runs in a browser: the slider, dots that lead to images, phone width, axe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import Watched
from PIL import Image

from tastemaker.report.page import compare_report, write_report

ROUNDS = (0, 2, 4)
COLOURS = {0: (200, 0, 0), 2: (0, 200, 0), 4: (0, 0, 200)}
"""Of a checkpoint's images; the second run's are half as bright."""


def make_run(folder: Path, brightness: float = 1.0) -> Path:
    """Four rounds with evaluations at ROUNDS: two prompts of two images, all of one colour, with reward = round."""
    lines: list[dict[str, Any]] = []
    for n in range(5):
        if n:
            lines.append({"round": n, "reward/mean": n - 1, "reward/base_stds": n - 1, "judge/correct": 0.5})
        if n in ROUNDS:
            lines.append({"evaluation": n, "eval/reward/mean": n, "eval/reward/base_stds": n,
                          "eval/judge/correct": 0.5})  # fmt: skip
            samples = folder / f"samples/round-{n:04d}"
            samples.mkdir(parents=True)
            colour: Any = tuple(int(brightness * value) for value in COLOURS[n])
            listed = []
            for index in range(4):
                Image.new("RGB", (32, 32), colour).save(samples / f"{index}.png")
                listed.append({"file": f"{index}.png", "prompt": f"prompt {index // 2}", "seed": index % 2,
                               "reward": float(n), "correct": index % 2 == 0})  # fmt: skip
            (samples / "samples.json").write_text(json.dumps({"round": n, "samples": listed}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("model: bundled\nreward: colourfulness\nalgorithm:\n  name: ddpo\n")
    return folder


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of one run, and of two."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / name, brightness) for name, brightness in (("first", 1.0), ("second", 0.5))]
    return {"run": write_report(runs[0]), "comparison": compare_report(runs, folder / "comparison.html")}


def opened(browser, report: Path, width: int = 1280, scheme: str = "light", part: str = "") -> Watched:
    watched = Watched(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
    watched.page.goto(report.as_uri() + part)
    return watched


def shown(watched: Watched) -> list[list[int]]:
    """The colours of the images that the slider changes, of the first prompt, as they are drawn."""
    return watched.page.evaluate(
        """async () => {
          const images = [...document.querySelectorAll(".card:first-child [data-live] img")];
          return Promise.all(images.map(async (image) => {
            await image.decode();
            const context = new OffscreenCanvas(1, 1).getContext("2d");
            context.drawImage(image, 0, 0, 1, 1);
            return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
          }));
        }"""
    )


def test_the_slider_shows_each_checkpoint(browser, reports):
    watched = opened(browser, reports["run"])
    page = watched.page
    assert shown(watched) == [list(COLOURS[4])] * 2
    for place in (1, 0, 2):
        page.locator("#slider").fill(str(place))
        assert shown(watched) == [list(COLOURS[ROUNDS[place]])] * 2
        assert page.locator("[data-live] [data-mean]").first.inner_text() == f"{ROUNDS[place]:.2f}"
    page.locator("body").press("ArrowLeft")
    assert shown(watched) == [list(COLOURS[2])] * 2
    assert watched.errors == []


def test_a_dot_leads_to_its_images(browser, reports):
    """Dots of the first plot in their order, and the address that one leaves behind."""
    watched = opened(browser, reports["run"])
    page = watched.page
    dots = page.locator(".plot").first.locator("svg a")
    assert dots.count() == 3
    for place, n in enumerate(ROUNDS):
        dots.nth(place).dispatch_event("click")
        page.wait_for_function(f"location.hash === '#after-{n}'")
        assert shown(watched) == [list(COLOURS[n])] * 2
        assert page.locator("#images").evaluate("(part) => Math.abs(part.getBoundingClientRect().top) < 20")
    address = page.url
    other = opened(browser, reports["run"], part="#after-2")
    assert address.endswith("#after-4")
    assert shown(other) == [list(COLOURS[2])] * 2
    assert watched.errors == other.errors == []


def test_a_comparison_moves_all_runs(browser, reports):
    watched = opened(browser, reports["comparison"])
    watched.page.locator("#slider").fill("1")
    half = [value // 2 for value in COLOURS[2]]
    assert shown(watched) == [list(COLOURS[2])] * 2 + [half] * 2
    assert watched.errors == []


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_a_phone_shows_everything_within_its_width_and_axe_finds_nothing(browser, reports, kind):
    watched = opened(browser, reports[kind], 390, "dark")
    assert watched.page.evaluate("document.documentElement.scrollWidth") == 390
    found = Axe().run(watched.page)
    assert found.violations_count == 0, found.generate_report()
    assert watched.errors == []
