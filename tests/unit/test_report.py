"""The HTML report: numbers, images, escaping, the slider's data, and half-finished or broken runs."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drawing import drawn
from tastemaker.errors import ConfigError
from tastemaker.evaluation.statistics import bootstrap_mean, rate_interval
from tastemaker.iteration import report as iterations
from tastemaker.iteration.lineage import Record
from tastemaker.report import grid
from tastemaker.report.data import base_scale, read_run, seconds_by_phase
from tastemaker.report.grid import MOST_IMAGES
from tastemaker.report.intervals import at_evaluations, of_change
from tastemaker.report.page import compare_report, write_report
from tastemaker.report.text import _short, tidy_number

PROMPTS = ("a red star", "a blue house")
VOID = {"meta", "img", "input", "br", "hr", "link"}
# The base model of these runs has mean reward -2 and standard deviation 0.5.
BASE_MEAN, BASE_STD = -2.0, 0.5


@pytest.fixture
def _figures():
    """Figures are drawn, for tests that look at them and for runs with few numbers to draw."""
    with drawn():
        yield


with_figures = pytest.mark.usefixtures("_figures")


class Page(HTMLParser):
    """The page as a flat list of elements (tag, attributes, ancestors' classes) with the text inside each."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[dict[str, Any]] = []
        self.stack: list[dict[str, Any]] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        element = {"tag": tag, "text": "", "attrs": attributes, "classes": attributes.get("class", "").split()}
        element["within"] = [other for other in self.stack]
        self.elements.append(element)
        if tag not in VOID:
            self.stack.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        closed = self.stack.pop()
        assert closed["tag"] == tag, f"<{closed['tag']}> is closed by </{tag}>"

    def handle_data(self, data: str) -> None:
        for element in self.stack:
            element["text"] += data

    def all(self, tag: str, cls: str | None = None, **attrs: str) -> list[dict[str, Any]]:
        return [
            e
            for e in self.elements
            if e["tag"] == tag
            and (cls is None or cls in e["classes"])
            and all(e["attrs"].get(key.replace("_", "-")) == value for key, value in attrs.items())
        ]

    def value(self, title: str) -> str:
        """The text of the <dd> that follows a <dt>."""
        index = next(i for i, e in enumerate(self.elements) if e["tag"] == "dt" and e["text"] == title)
        return " ".join(next(e for e in self.elements[index:] if e["tag"] == "dd")["text"].split())

    def groups(self, live: bool) -> list[dict[str, Any]]:
        return [e for e in self.all("div", "group") if ("data-live" in e["attrs"]) == live]

    def inside(self, element: dict[str, Any], tag: str) -> list[dict[str, Any]]:
        return [e for e in self.elements if e["tag"] == tag and any(a is element for a in e["within"])]

    def frames(self) -> list[dict[str, Any]]:
        return [
            {"label": e["attrs"]["data-label"], "round": int(e["attrs"]["data-round"]), "groups": json.loads(e["text"])}
            for e in self.all("script", type="application/json")
        ]

    def plots(self) -> list[str]:
        return [self.inside(figure, "h3")[0]["text"] for figure in self.all("figure", "plot")]


def round_record(n: int, mean: float, **more: Any) -> dict[str, Any]:
    return {
        "round": n, "reward/mean": mean, "reward/std": 0.4, "reward/min": mean - 1, "reward/max": mean + 1,
        "reward/base_stds": (mean - BASE_MEAN) / BASE_STD, "judge/correct": 0.9, "ratio_deviation/first": 0.0,
        "ratio_deviation/mean": 1e-4, "ratio_deviation/max": 1e-3, "clip_fraction": 0.2, "approx_kl": 1e-8,
        "loss": 0.1, "grad_norm": 0.5, "advantage/std": 1.0, "reward_queries": 600 * n, "seconds/sample": 20.0,
        "seconds/score": 1.0, "seconds/train": 30.0, "seconds/evaluate": 5.0, "seconds/save": 1.0,
        "seconds/round": 60.0, "diversity": 0.3, "unheard/of": {"nested": [1]},
    } | more  # fmt: skip


def evaluation_record(n: int, mean: float, judge: float | None = 0.9) -> dict[str, Any]:
    record = {
        "evaluation": n, "eval/reward/mean": mean, "eval/reward/std": 0.5,
        "eval/reward/base_stds": (mean - BASE_MEAN) / BASE_STD, "eval/diversity": 0.25,
    }  # fmt: skip
    return record if judge is None else record | {"eval/judge/correct": judge}


def noise(seed: int, size: int) -> Image.Image:
    """An image that differs in every pixel from those of other seeds."""
    data = hashlib.shake_256(str(seed).encode()).digest(size * size * 3)
    return Image.frombytes("RGB", (size, size), data)


def add_samples(
    run: Path, n: int, prompts: tuple[str, ...] = PROMPTS, per_prompt: int = 2, size: int = 32, **more: Any
) -> Path:
    """samples/round-n with rewards n + index / 10; the last image is wrong, the first unjudged."""
    folder = run / f"samples/round-{n:04d}"
    folder.mkdir(parents=True)
    samples = []
    for index in range(len(prompts) * per_prompt):
        noise(1000 * n + index, size).save(folder / f"{index:03d}.png")
        correct = None if index == 0 else index < len(prompts) * per_prompt - 1
        samples.append(
            {"file": f"{index:03d}.png", "prompt": prompts[index // per_prompt], "seed": index % per_prompt,
             "reward": n + index / 10, "correct": correct} | more
        )  # fmt: skip
    (folder / "samples.json").write_text(json.dumps({"round": n, "samples": samples}), encoding="utf-8")
    return folder


def make_run(folder: Path, records: list[dict[str, Any]], samples: tuple[int, ...] = (), tail: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records) + tail
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    (folder / "config.yaml").write_text(
        "model: bundled\nreward: jpeg-compressibility\nprompts: bundled-single\nrounds: 9\n"
        "algorithm:\n  name: ddpo\n  clip: 0.0001\noptimizer:\n  lr: 0.001\n"
    )
    (folder / "env.json").write_text(json.dumps({"command": "tastemaker train compress", "torch": "2.13.0"}))
    for n in samples:
        add_samples(folder, n)
    return folder


def usual(folder: Path, samples: tuple[int, ...] = (0, 2, 4), tail: str = "") -> Path:
    """Four rounds with evaluations of the base model and after rounds 2 and 4."""
    rounds = [round_record(n, -2 + 0.25 * n) for n in range(1, 5)]
    evaluations = [evaluation_record(0, -2.0, 0.9), evaluation_record(2, -1.5, 0.85), evaluation_record(4, -1.0, 0.8)]
    order = [evaluations[0], *rounds[:2], evaluations[1], *rounds[2:], evaluations[2]]
    return make_run(folder, order, samples, tail)


def decoded(uri: str) -> Image.Image:
    head, data = uri.split(",", 1)
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert f"image/{image.format.lower()};" in head  # type: ignore[union-attr]
    return image


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The report of a usual run."""
    with drawn():
        return write_report(usual(tmp_path_factory.mktemp("usual") / "run"))


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page(report)


def test_headline_is_the_evaluations_first_and_last(report, page):
    assert report.parts[-2:] == ("run", "report.html")
    assert page.value("Reward") == "−2.00→−1.00"
    assert page.value("In base standard deviations") == "+2.00"  # (-1 - -2) / 0.5
    assert page.value("Judged correct") == "90%→80%"
    assert page.value("Diversity") == "0.25→0.25"
    assert page.value("Rounds") == "4 of 9"
    assert page.value("Wall time") == "4 min"  # 4 rounds of 60 s
    assert page.value("Reward queries") == "2,400"  # cumulative: the last, not the sum
    assert page.value("Algorithm") == "DDPO"
    assert page.all("h1")[0]["text"] == "bundled, trained for jpeg-compressibility"


def test_headline_falls_back_on_training_images(tmp_path):
    """With one evaluation only, first and last round are compared: never an evaluation with a round."""
    run = make_run(tmp_path / "run", [evaluation_record(0, -9.0), round_record(1, -2.0), round_record(2, -1.75)])
    page = Page(write_report(run))
    assert page.value("Reward") == "−2.00→−1.75"
    assert page.value("In base standard deviations") == "+0.50"


def test_headline_takes_no_later_model_for_the_base_model(tmp_path):
    """Where the base model's evaluation is missing, round 1, which the base model drew, stands in."""
    late = [evaluation_record(2, -1.5), evaluation_record(3, -1.0)]
    rounds = [round_record(1, -2.0), round_record(2, -1.75)]
    assert Page(write_report(make_run(tmp_path / "a", late + rounds))).value("Reward") == "−2.00→−1.75"
    assert Page(write_report(make_run(tmp_path / "b", late))).value("Reward") == "–"


def stopped(folder: Path, kept: int) -> Path:
    """A run of four rounds that was stopped early, and leaves the model of round `kept`."""
    run = usual(folder)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in lines:
        if "evaluation" in record:
            record["early_stop/kept_round"] = min(record["evaluation"], kept)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    return run


def test_headline_and_images_are_those_of_the_model_that_early_stopping_leaves(tmp_path):
    page = Page(write_report(stopped(tmp_path / "run", 2)))
    assert page.value("Reward") == "−2.00→−1.50"
    assert page.value("In base standard deviations") == "+1.00"  # (-1.5 - -2) / 0.5
    assert page.value("Judged correct") == "90%→85%"
    assert page.value("Rounds") == "4 of 9 (leaves that of 2)"
    lead = " ".join(page.all("p", "lead")[0]["text"].split())
    assert lead.startswith("After 2 rounds of DDPO, the mean reward rose from −2.00 to −1.50")
    assert "The run stopped early, after 4 rounds: the model that it leaves" in lead
    assert "before and after, are those of round 2." in lead
    assert [page.inside(group, "b")[0]["text"] for group in page.groups(live=True)] == ["2.05", "2.25"]
    slider = page.all("input", id="slider")[0]["attrs"]
    assert (slider["max"], slider["value"]) == ("2", "1")
    assert [frame["groups"] is None for frame in page.frames()] == [False, True, False]
    assert page.all("output", id="stop")[0]["text"] == "after 2 rounds"


def test_a_run_that_leaves_the_base_model_says_so(tmp_path):
    page = Page(write_report(stopped(tmp_path / "run", 0)))
    assert page.value("Reward") == "−2.00→−2.00"
    assert "are those of the base model, since nothing later was as good" in page.source
    change = of_change(read_run(tmp_path / "run"), "reward/mean")
    assert change is None or (change.low, change.high) == (0.0, 0.0)


def test_comparison_shows_what_each_run_leaves(tmp_path):
    runs = [stopped(tmp_path / "stopped", 2), usual(tmp_path / "whole")]
    page = Page(compare_report(runs, tmp_path / "report.html"))
    assert "4 (leaves that of 2)" in [cell["text"] for cell in page.all("td", "n")]
    frames = page.frames()
    assert [frame["label"] for frame in frames] == ["base model", "after 2 rounds", "after 4 rounds", "at the end"]
    assert frames[3]["groups"] is None
    assert [page.inside(group, "b")[0]["text"] for group in page.groups(live=True)] == ["2.05", "4.05", "2.25", "4.25"]


def test_the_report_of_iterations_shows_what_each_run_leaves(tmp_path):
    run = read_run(stopped(tmp_path / "run", 2))
    assert iterations._before_after(run, "eval/judge/correct") == "90%\u00a0→\u00a085%"
    cards, _ = iterations.shown_images([run])
    (_, before), (name, after) = cards[0].groups
    assert name == "iteration 1"
    for n, uris in ((0, before), (2, after)):
        assert [decoded(uri).convert("RGB").tobytes() for uri in uris] == [
            noise(1000 * n + index, 32).tobytes() for index in range(2)
        ]


def test_the_model_that_is_left_stays_on_a_thinned_slider(tmp_path):
    for kept in (0, 1, 20, 38, 39):
        run = make_run(tmp_path / str(kept), [evaluation_record(39, -1.0) | {"early_stop/kept_round": kept}])
        records = [evaluation_record(n, -1.0) | {"early_stop/kept_round": min(n, kept)} for n in range(40)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        for n in range(40):
            add_samples(run, n, prompts=("a star",), per_prompt=1, size=2)
        page = Page(write_report(run))
        rounds = [frame["round"] for frame in page.frames()]
        assert rounds == sorted(set(rounds))
        assert (rounds[0], rounds[-1], len(rounds)) == (0, 39, MOST_IMAGES)
        assert rounds[int(page.all("input", id="slider")[0]["attrs"]["value"])] == kept


def test_before_and_after_images_are_the_files_pixel_for_pixel(page):
    for live, n in ((False, 0), (True, 4)):
        shown = [image["attrs"]["src"] for group in page.groups(live) for image in page.inside(group, "img")]
        assert len(shown) == 4
        for index, uri in enumerate(shown):
            image = decoded(uri)
            assert image.format == "PNG"
            assert image.convert("RGB").tobytes() == noise(1000 * n + index, 32).tobytes()
    assert "pixelated" in page.all("div", id="cards")[0]["classes"]


def test_rewards_and_marks_stand_under_their_images(page):
    after = page.groups(live=True)
    captions = [caption["text"] for group in after for caption in page.inside(group, "figcaption")]
    assert captions == ["4.00", "4.10", "4.20", "4.30"]
    assert [page.inside(group, "b")[0]["text"] for group in after] == ["4.05", "4.25"]  # means of two each
    wrong = ["wrong" in shot["classes"] for group in after for shot in page.inside(group, "figure")]
    assert wrong == [False, False, False, True]


def test_slider_has_a_stop_for_each_checkpoint(page):
    slider = page.all("input", id="slider")[0]["attrs"]
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "2")
    frames = page.frames()
    assert [frame["label"] for frame in frames] == ["base model", "after 2 rounds", "after 4 rounds"]
    assert frames[-1]["groups"] is None  # the page's own images: not stored twice
    middle = frames[1]["groups"]
    assert [group["text"] for group in middle] == ["2.05", "2.25"]
    src, text, wrong = middle[1]["cells"][1]
    assert decoded(src).convert("RGB").tobytes() == noise(2003, 32).tobytes()
    assert (text, wrong) == ("2.30", True)


def test_many_checkpoints_are_thinned_to_both_ends_and_some_between(tmp_path):
    run = make_run(tmp_path / "run", [round_record(1, -2.0)])
    for n in range(40):
        add_samples(run, n, prompts=("a star",), per_prompt=1, size=2)
    page = Page(write_report(run))
    rounds = [frame["round"] for frame in page.frames()]
    assert (rounds[0], rounds[-1], len(rounds)) == (0, 39, MOST_IMAGES)
    assert rounds == sorted(set(rounds))
    assert f"{MOST_IMAGES} of 40 checkpoints" in page.source


def test_large_images_are_shrunk_to_jpeg(tmp_path):
    run = make_run(tmp_path / "run", [round_record(1, -2.0)])
    folder = add_samples(run, 0, prompts=("a sky",), per_prompt=1)
    Image.new("RGB", (1024, 512), (30, 90, 200)).save(folder / "000.png")
    page = Page(write_report(run))
    image = decoded(page.all("img")[0]["attrs"]["src"])
    assert (image.format, image.size) == ("JPEG", (256, 128))
    red, green, blue = image.convert("RGB").getpixel((128, 64))  # type: ignore[misc]
    assert abs(red - 30) < 6
    assert abs(green - 90) < 6
    assert abs(blue - 200) < 6
    assert "pixelated" not in page.all("div", id="cards")[0]["classes"]
    assert "--ratio: 1024 / 512" in page.all("div", id="cards")[0]["attrs"]["style"]


def test_many_large_images_are_shrunk_more(tmp_path, monkeypatch):
    """Two prompts of two images at three stops are 12; above 11, they have 128 pixels."""
    run = usual(tmp_path / "run", ())
    for n in (0, 2, 4):
        add_samples(run, n, size=512)
    for most, side in ((12, 256), (11, 128)):
        monkeypatch.setattr(grid, "MANY", most)
        page = Page(write_report(run))
        assert {decoded(e["attrs"]["src"]).size for e in page.all("img")} == {(side, side)}


def test_most_changed_prompts_rank_first(tmp_path):
    run = make_run(tmp_path / "run", [round_record(1, -2.0)])
    prompts = ("still", "up", "down")
    for n, rewards in ((0, (1, 1, 1)), (1, (1, 2, -3))):
        folder = add_samples(run, n, prompts=prompts, per_prompt=1)
        data = json.loads((folder / "samples.json").read_text())
        for sample, reward in zip(data["samples"], rewards, strict=True):
            sample["reward"] = reward
        (folder / "samples.json").write_text(json.dumps(data))
    page = Page(write_report(run))
    ranks = {page.inside(card, "h3")[0]["text"]: card["attrs"]["style"] for card in page.all("article", "card")}
    assert ranks == {"still": "--rank: 2", "up": "--rank: 1", "down": "--rank: 0"}


def test_nothing_leaves_the_file(page):
    """No address, no import: every reference is to the page itself or a data URI."""
    text = re.sub(r"data:image/\w+;base64,[\w+/=]*", "", page.source)
    assert not re.search(r"https?:|[\"'(]//|@import|xmlns", text)
    references = [e["attrs"][key] for e in page.elements for key in ("src", "href", "xlink:href") if key in e["attrs"]]
    assert references
    assert all(reference.startswith(("data:", "#")) for reference in references)
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", page.source))
    assert not page.all("link")


def test_only_the_pages_own_script_may_run(page):
    policy = page.all("meta", http_equiv="Content-Security-Policy")[0]["attrs"]["content"]
    running = [e for e in page.all("script") if e["attrs"].get("type") != "application/json"]
    assert len(running) == 1
    digest = base64.b64encode(hashlib.sha256(running[0]["text"].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_html_in_prompts_settings_and_names_stays_text(tmp_path):
    evil = "</h3><script>alert(1)</script><img src=x onerror=alert(1)> & \"quotes' {{ 7 * 7 }}"
    run = usual(tmp_path / "<b>run", samples=())
    (run / "config.yaml").write_text(f"model: '<i>m</i>'\nreward: r\nnote: '</pre>{evil[:40]}'\n")
    (run / "env.json").write_text(json.dumps({"command": evil, "</td>": "<u>"}))
    for n in (0, 4):
        add_samples(run, n, prompts=(evil, "</script><!-- x"))
    page = Page(write_report(run))
    assert [e["text"] for e in page.all("h3") if "card" in e["within"][-1]["classes"]] == [evil, "</script><!-- x"]
    assert page.all("img")[0]["attrs"]["alt"] == evil
    assert page.all("h1")[0]["text"].startswith("<i>m</i>")
    assert "<b>run" in page.all("p", "eyebrow")[0]["text"]
    assert [e["text"] for e in page.all("pre")][1] == evil
    assert len(page.all("script")) == len(page.frames()) + 1
    assert not [e for e in page.elements if e["tag"] in ("i", "u") or "onerror" in e["attrs"]]


def test_ids_are_unique_and_elements_balanced(page):
    assert page.stack == []
    ids = Counter(e["attrs"]["id"] for e in page.elements if "id" in e["attrs"])
    assert [name for name, count in ids.items() if count > 1] == []


@with_figures
def test_report_is_the_same_each_time(report):
    first = report.read_bytes()
    assert write_report(report.parent).read_bytes() == first
    assert not list(report.parent.glob("*.partial"))


def test_plots_have_titles_captions_text_and_links(page):
    assert page.plots() == [
        "Reward", "Reward and what is not trained on", "Reward and judge", "Size of the policy's steps",
        "Stability of the updates", "Where the time goes", "Diversity",
    ]  # fmt: skip
    figures = page.all("figure", "plot")
    assert all(len(page.inside(figure, "figcaption")[0]["text"]) > 40 for figure in figures)
    texts = [e["text"].strip() for e in page.inside(figures[0], "text")]
    assert {"reward", "base std", "evaluation", "rounds of training done"} <= set(texts)
    assert "clip range" in [e["text"].strip() for e in page.inside(figures[3], "text")]
    links = [e["attrs"]["xlink:href"] for e in page.inside(figures[0], "a")]
    assert links == ["#after-0", "#after-2", "#after-4"]
    assert not [link for link in page.all("a") if "target" in link["attrs"]]  # they act on the page itself
    assert "var(--c0)" in page.source
    assert "DejaVu" not in page.source


@pytest.mark.parametrize(
    ("stds", "judge", "warned"),
    [(1.2, 0.70, True), (0.9, 0.70, False), (1.2, 0.80, False), (1.2, 1.0, False), (-1.2, 0.70, False)],
)
def test_warns_where_reward_and_judge_part(tmp_path, stds, judge, warned):
    """More than 1 base standard deviation up while the judge fell by more than 0.15."""
    records = [evaluation_record(0, BASE_MEAN, 0.9), evaluation_record(3, BASE_MEAN + stds * BASE_STD, judge)]
    page = Page(write_report(make_run(tmp_path / "run", records)))
    assert bool(page.all("p", "warning")) == warned


@with_figures
def test_curves_of_iterations_that_go_on_from_one_another_follow_each_other(tmp_path, monkeypatch):
    """From the round of the model that the run before has left: 2 of 4 where that run stopped early."""
    runs = [read_run(stopped(tmp_path / "1", 2)), read_run(usual(tmp_path / "2")), read_run(usual(tmp_path / "3"))]
    records = [Record(1), Record(2), Record(3)]
    drawn: list[list[float]] = []
    monkeypatch.setattr(iterations, "curve", lambda axis, x, *_: drawn.append(list(x)))
    made = iterations.plots(runs, records, one_policy=True)
    assert [plot.title for plot in made] == ["Shows the prompt", "Diversity"]
    assert drawn == 2 * [[0, 2, 4], [2, 4, 6], [6, 8, 10]]
    drawn.clear()
    iterations.plots(runs, records)
    assert drawn == 2 * [[0, 2, 4]] * 3


def test_whose_images_an_iteration_has():
    def images_of(number: int, mixed: bool = True) -> str:
        return iterations._images_of(Record(number, policy=None if number == 1 else "run", mixed=mixed and number > 1))

    assert images_of(1) == "base model"
    assert images_of(2) == "iteration 1, base model"
    assert images_of(2, mixed=False) == "iteration 1"
    assert images_of(3) == "iterations 1 and 2, base model"
    assert images_of(4) == "iterations 1 to 3, base model"
    assert images_of(4, mixed=False) == "iteration 3"


def watched(folder: Path) -> Path:
    """A run with a warning at its second of two evaluations, with the divergence and the figures of collapse."""
    evaluations = [
        evaluation_record(n, mean, 0.9 - n / 10)
        | {"eval/kl": 60.0 * n, "eval/difference/prompts": 0.4, "eval/difference/seeds": 0.3, "eval/grid_power": 0.02}
        | {"eval/rewards/clip": 0.5 - n / 10}
        for n, mean in ((0, -2.0), (1, -1.8), (3, -1.0))
    ]
    evaluations[2] |= {
        "over_optimisation/warnings": 1,
        "over_optimisation/said": "over-optimisation after round 3: <b>",
    }
    return make_run(folder, [*(round_record(n, -2 + 0.25 * n) for n in range(1, 4)), *evaluations])


def test_a_warning_of_over_optimisation_stands_at_the_top(tmp_path):
    page = Page(write_report(watched(tmp_path / "run")))
    (warning,) = page.all("p", "warning")
    assert " ".join(warning["text"].split()).startswith(
        "Over-optimisation. After round 3: <b>. The model may be gaming"
    )


def test_a_comparison_names_the_runs_with_warnings_in_one_paragraph(tmp_path):
    """One paragraph of each kind, whatever the number of runs: what fell stands in the runs' own reports."""
    parting = [evaluation_record(0, BASE_MEAN, 0.9), evaluation_record(3, BASE_MEAN + 1.2 * BASE_STD, 0.7)]
    runs = [
        watched(tmp_path / "watched"), watched(tmp_path / "kept"), make_run(tmp_path / "parting", parting),
        make_run(tmp_path / "sound", [evaluation_record(0, BASE_MEAN, 0.9), evaluation_record(3, BASE_MEAN, 0.9)]),
    ]  # fmt: skip
    kept = [
        {**record, "early_stop/kept_round": min(record["evaluation"], 1)} for record in read_run(runs[1]).evaluations
    ]
    make_run(runs[1], kept)
    warnings = [
        " ".join(one["text"].split()) for one in Page(compare_report(runs, tmp_path / "page.html")).all("p", "warning")
    ]
    assert len(warnings) == 2
    assert warnings[0].startswith(
        "Over-optimisation in 2 of 4 runs. watched: first warning after round 3. kept: first warning after round 3; "
        "the run leaves the model of round 1. What fell"
    )
    assert "<b>" not in warnings[0]
    assert warnings[1].startswith("Reward and judge part in 1 of 4 runs. parting: The reward rose by +1.20 base")
    assert "fell from 90% to 70%" in warnings[1]


@with_figures
def test_the_reward_is_plotted_against_the_divergence_and_what_is_not_trained_on(tmp_path):
    run = watched(tmp_path / "run")
    page = Page(write_report(run))
    titles = {"Reward and divergence", "Reward and what is not trained on", "Signs of collapse"}
    assert titles <= set(page.plots())
    for figure in page.all("figure", "plot"):
        title = page.inside(figure, "h3")[0]["text"]
        links = [e["attrs"]["xlink:href"] for e in page.inside(figure, "a")]
        panels = {"Reward and divergence": 1, "Reward and what is not trained on": 3, "Signs of collapse": 3}
        if title in titles:
            assert links == ["#after-0", "#after-1", "#after-3"] * panels[title]
    # The rings of what has a warning are named once in a plot.
    assert page.source.count(">warning<") == 2
    assert "Reward and divergence" in Page(compare_report([run, run], tmp_path / "two.html")).plots()
    assert not titles & set(Page(write_report(usual(tmp_path / "old"))).plots()) - {"Reward and what is not trained on"}


@with_figures
def test_a_base_model_whose_rewards_do_not_differ_has_no_deviations(tmp_path):
    """Figures and axes are in the reward's own unit then, and nothing is said to be a standard deviation."""
    records = [round_record(1, 0.25), evaluation_record(0, 0.0), evaluation_record(1, 0.5, 0.4)]
    for record in records:
        for key in [key for key in record if key.endswith("base_stds")]:
            record[key.replace("base_stds", "base_difference")] = record.pop(key)
    page = Page(write_report(make_run(tmp_path / "run", records)))
    assert page.value("Reward") == "0.00→0.50"
    assert "there are no standard deviations to count in" in page.source
    for claim in ("In base standard deviations", "base std<", "right axis counts", "of the base model's images."):
        assert claim not in page.source
    assert "Reward and judge" in page.plots()
    assert not page.all("p", "warning")


@with_figures
def test_base_evaluation_alone(tmp_path):
    page = Page(write_report(make_run(tmp_path / "run", [evaluation_record(0, -2.0)], samples=(0,))))
    assert page.value("Reward") == "−2.00"
    assert page.value("Rounds") == "0 of 9"
    assert page.value("Wall time") == "–"
    assert "No round has finished yet" in page.source
    assert len(page.groups(live=False)) == 2
    assert not page.groups(live=True)
    assert not page.all("input", id="slider")
    assert not page.all("script")


@with_figures
def test_one_round_without_judge_diversity_or_samples(tmp_path):
    record = round_record(1, -2.0)
    for key in ("judge/correct", "diversity"):
        del record[key]
    page = Page(write_report(make_run(tmp_path / "run", [evaluation_record(0, -2.0, judge=None), record])))
    assert page.value("Rounds") == "1 of 9"
    assert not [e for e in page.all("dt") if e["text"] == "Judged correct"]
    assert "Reward and judge" not in page.plots()
    assert not page.all("div", id="cards")


@with_figures
def test_a_run_with_bare_rounds_only(tmp_path):
    """Every key but the round's number may be missing."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"round": 1, "judge/correct": 0.5}\n{"round": 2, "clip_fraction": 0.1}')
    page = Page(write_report(run))
    assert page.value("Reward") == "–"
    assert page.plots() == ["Reward and judge", "Size of the policy's steps"]


def test_the_line_a_killed_run_was_writing_is_ignored(tmp_path):
    torn = tmp_path / "torn"
    page = Page(write_report(usual(torn, tail='{"round": 5, "reward/mean": "\u00e9')))
    assert page.value("Rounds") == "4 of 9"
    with (torn / "metrics.jsonl").open("ab") as file:
        file.write(b"\xc3")  # half a letter
    assert Page(write_report(torn)).value("Rounds") == "4 of 9"


def test_a_whole_last_line_counts_without_its_newline(tmp_path):
    page = Page(write_report(usual(tmp_path / "run", tail=json.dumps(round_record(5, 0.0)))))
    assert page.value("Rounds") == "5 of 9"


def test_a_round_logged_again_after_resuming_replaces_the_first(tmp_path):
    records = [round_record(1, -2.0), round_record(2, 7.0), round_record(2, -1.0)]
    run = make_run(tmp_path / "run", records)
    assert len(read_run(run).rounds) == 2
    assert Page(write_report(run)).value("Reward") == "−2.00→−1.00"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no finished round"),
        ("\n\n", "no finished round"),
        ('{"round": 1', "no finished round"),
        ('{"round": 1}\n{"round": \n{"round": 3}\n', r"line 2 is not valid JSON"),
        ('{"round": 1}\n{"round": 2\n', r"line 2 is not valid JSON"),
        ("[1, 2]\n", r"line 1 must be a JSON object, but is list"),
    ],
)
def test_unusable_metrics_are_refused(tmp_path, text, message):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is not a run: it has no metrics\.jsonl"):
        write_report(tmp_path)


def test_incomplete_or_foreign_samples_are_left_out_and_said_so(tmp_path):
    run = usual(tmp_path / "run")
    (run / "samples/round-0006").mkdir()
    (add_samples(run, 8) / "samples.json").write_text('{"round": 8, "samp')
    add_samples(run, 9, prompts=("another", "prompt"))
    page = Page(write_report(run))
    assert [frame["round"] for frame in page.frames()] == [0, 2, 4]
    for name, reason in (("0006", "incomplete"), ("0008", "incomplete"), ("0009", "differ")):
        assert re.search(rf"round-{name} is left out, because its .*{reason}", page.source)


def test_a_missing_damaged_or_outside_image_is_a_blank(tmp_path):
    noise(7, 32).save(tmp_path / "secret.png")
    run = make_run(tmp_path / "run", [round_record(1, -2.0)])
    folder = add_samples(run, 0)
    (folder / "000.png").unlink()
    (folder / "001.png").write_bytes((folder / "001.png").read_bytes()[:200])
    data = json.loads((folder / "samples.json").read_text())
    data["samples"][2]["file"] = "../../../secret.png"
    (folder / "samples.json").write_text(json.dumps(data))
    page = Page(write_report(run))
    sources = [image["attrs"]["src"] for image in page.all("img")]
    assert [source[:15] for source in sources] == ["data:image/gif;"] * 3 + ["data:image/png;"]
    assert [e["text"] for e in page.all("figcaption")][:3] == ["missing"] * 3


def test_base_scale_is_solved_from_both_units(tmp_path):
    run = make_run(tmp_path / "run", [round_record(1, -1.5), round_record(2, -1.0)])
    assert base_scale(read_run(run)) == pytest.approx((BASE_MEAN, BASE_STD))
    flat = make_run(tmp_path / "flat", [round_record(1, -2.0), round_record(2, -2.0)])
    assert base_scale(read_run(flat)) is None


def test_seconds_outside_of_the_named_phases():
    phases = {"seconds/sample": 20, "seconds/score": 2, "seconds/train": 30, "seconds/evaluate": 8, "seconds/save": 1}
    within = seconds_by_phase(phases | {"seconds/round": 64})  # 64 - (20 + 2 + 30 + 8 + 1)
    apart = seconds_by_phase(phases | {"seconds/round": 55})  # too little for 61, so without evaluate and save
    assert (within["other"], sum(within.values())) == (3, 64)
    assert (apart["other"], sum(apart.values())) == (3, 64)
    assert seconds_by_phase({})["other"] == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0.00"), (-1.186, "−1.19"), (123.45, "123.5"), (12345.6, "12,346"), (3.14e-5, "3.1e−05")],
)
def test_numbers_are_short(value, text):
    assert tidy_number(value) == text


@with_figures
def test_comparison_has_a_row_and_a_column_a_run(tmp_path):
    first = usual(tmp_path / "a" / "run")
    second = usual(tmp_path / "b" / "run", samples=(0, 2, 6))
    settings = (second / "config.yaml").read_text().replace("0.001", "0.003")
    (second / "config.yaml").write_text(settings)
    out = tmp_path / "new" / "both.html"
    assert compare_report([first, second], out) == out
    page = Page(out)
    table = page.all("table")[0]
    rows = [[cell["text"] for cell in page.inside(row, "td")] for row in page.inside(table, "tr")][1:]
    assert rows == [["jpeg-compressibility", "−2.00→−1.00", "+2.00", "90%→80%", "4", "4 min", "2,400"]] * 2
    assert [e["text"] for e in page.inside(table, "th")][8:] == ["a/run", "b/run"]
    differing = page.inside(page.all("table")[1], "tr")[1:]
    assert [[c["text"] for c in page.inside(row, "td")] for row in differing] == [["0.001", "0.003"]]
    assert page.plots() == ["Reward in base standard deviations", "Reward", "Judge", "Diversity"]
    assert [frame["label"] for frame in page.frames()] == ["base model", "after 2 rounds", "at the end"]
    shown = [decoded(image["attrs"]["src"]) for image in page.inside(page.groups(live=True)[1], "img")]
    assert [image.convert("RGB").tobytes() for image in shown] == [noise(6000 + i, 32).tobytes() for i in range(2)]


def test_comparison_of_runs_with_other_prompts_shows_no_images(tmp_path):
    first, second = usual(tmp_path / "a"), usual(tmp_path / "b", samples=())
    add_samples(second, 0, prompts=("another", "prompt"))
    page = Page(compare_report([first, second], tmp_path / "out.html"))
    assert not page.all("img")
    assert "prompts or seeds differ" in page.source


@with_figures
def test_comparison_of_more_runs_than_colours(tmp_path):
    runs = [usual(tmp_path / f"_$run{index}$", samples=()) for index in range(7)]
    page = Page(compare_report(runs, tmp_path / "out.html"))
    swatches = [e["attrs"]["style"] for e in page.inside(page.all("table")[0], "span") if "swatch" in e["classes"]]
    assert len(set(swatches)) == 7
    assert "_$run0$" in page.source


def test_comparison_of_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least one run"):
        compare_report([], tmp_path / "out.html")


def test_importing_the_report_does_not_import_torch():
    code = "import sys, tastemaker.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/models/digits", "digits"), ("./digits/", "digits"), ("CompVis/stable-diffusion-v1-4",) * 2, ("bundled",) * 2,
        ("target-image:/images/four.png", "target-image:four.png"), ("my_taste:redness",) * 2,
    ],
)  # fmt: skip
def test_titles_have_names_and_not_paths(name: str, shown: str):
    assert _short(name) == shown


def judged_run(folder: Path, before: list[list[int]], after: list[list[int]], **more: Any) -> Path:
    """A run whose evaluations judged these images of each prompt right; rewards are 1 for right ones, 0 for others."""

    def share(rows: list[list[int]]) -> float:
        return sum(map(sum, rows)) / sum(map(len, rows))

    records = [
        {"evaluation": n, "eval/reward/mean": share(rows), "eval/judge/correct": share(rows)} | more
        for n, rows in ((0, before), (2, after))
    ]
    make_run(folder, records)
    for n, rows in ((0, before), (2, after)):
        samples = folder / f"samples/round-{n:04d}"
        samples.mkdir(parents=True)
        listed = []
        for p, row in enumerate(rows):
            for seed, right in enumerate(row):
                name = f"{p}-{seed}.png"
                noise(100 * n + 10 * p + seed, 8).save(samples / name)
                listed.append({"file": name, "prompt": f"prompt {p}", "seed": seed, "reward": float(right),
                               "correct": bool(right)})  # fmt: skip
        (samples / "samples.json").write_text(json.dumps({"round": n, "samples": listed}))
    return folder


@with_figures
def test_intervals_are_over_prompts_and_pair_the_images(tmp_path):
    """Four prompts of two images. Each prompt's change is -1/2, whatever is drawn, so that the interval is one point;
    an unpaired one would be wide. Before, the prompts' shares are 1, 1, 1/2, 1/2: no share of a draw is beyond them."""
    run = judged_run(tmp_path / "run", [[1, 1], [1, 1], [1, 0], [1, 0]], [[1, 0], [0, 1], [0, 0], [0, 0]])
    data = read_run(run)
    found = at_evaluations(data, "judge/correct")
    assert set(found) == {0, 2}
    assert found[0].estimate == 0.75
    assert 0.5 <= found[0].low < 0.75 < found[0].high <= 1.0
    expected = bootstrap_mean([1, 1, 1, 1, 1, 0, 1, 0], [0, 0, 1, 1, 2, 2, 3, 3])
    assert (found[0].low, found[0].high) == (expected.low, expected.high)
    change = of_change(data, "judge/correct")
    assert change is not None
    assert (change.estimate, change.low, change.high) == pytest.approx((-0.5, -0.5, -0.5))
    page = Page(write_report(run))
    assert "change −50 to −50 points (95 %)" in page.source
    assert page.source.count("vlines") == 0
    plot = next(figure for figure in page.all("figure", "plot") if "Reward and judge" in figure["text"])
    lines = [e for e in page.inside(plot, "path") if "opacity: 0.6" in e["attrs"].get("style", "")]
    assert len(lines) == 4  # two evaluations in both panels


def test_images_of_which_the_record_does_not_tell_have_no_interval(tmp_path):
    """The record says 50 % right, the images say 75 %; and the last evaluation has no images."""
    rows = [[1, 1], [1, 0]]
    run = judged_run(tmp_path / "run", rows, rows, **{"eval/judge/correct": 0.5})
    assert at_evaluations(read_run(run), "judge/correct") == {}
    assert set(at_evaluations(read_run(run), "reward/mean")) == {0, 2}
    other = judged_run(tmp_path / "other", rows, rows)
    (other / "samples/round-0002/samples.json").unlink()
    assert of_change(read_run(other), "judge/correct") is None
    assert "points (95 %)" not in write_report(other).read_text()


def test_intervals_of_unseen_prompts(tmp_path):
    run = judged_run(tmp_path / "run", [[1, 1], [1, 0]], [[1, 1], [0, 0]], **{"eval/unseen/judge/correct": 0.75})
    shutil.copytree(run / "samples/round-0000", run / "samples/unseen-0000")
    found = at_evaluations(read_run(run), "unseen/judge/correct")
    assert {n: interval.estimate for n, interval in found.items()} == {0: 0.75}


def test_a_rate_of_which_all_are_alike_has_wilsons_interval_of_as_many_prompts():
    """Two prompts, all right: Wilson's lower end of 2 of 2 is 2 / (2 + z^2) = 2 / 5.841459 = 0.342380."""
    found = rate_interval([1, 1, 1, 1], ["a", "a", "b", "b"])
    assert (found.estimate, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.342380, abs=1e-6)


def test_divergence_of_rounds_is_not_that_of_evaluations(tmp_path):
    """Rounds of some algorithms log `kl` of single steps."""
    folder = make_run(tmp_path / "run", [evaluation_record(0, -2.0), round_record(1, -1.9, kl=0.1),
                                         evaluation_record(1, -1.9) | {"eval/unseen/reward/mean": 0.0}])  # fmt: skip
    assert "divergence from the base" not in write_report(folder).read_text()
