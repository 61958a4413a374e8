"""Comparisons at the real app over HTTP: nothing that it sends says whose image it is, and the better model wins."""

from __future__ import annotations

import asyncio
import io
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from compared_models import compared, flat, image_folder, noise
from label_serving import serving
from tastemaker.evaluation.statistics import wilson
from tastemaker.human_evaluation.result import read_result
from tastemaker.human_evaluation.study import read_study
from tastemaker.labelling.answers import read_tasks
from tastemaker.labelling.ranking import Judgement, left_right
from tastemaker.labelling.simulate import Browser, Crowd, enter, simulate
from tastemaker.labelling.taste import Behaviour

PROMPTS = 150


@dataclass(frozen=True)
class Sight:
    """All that a labeler's browser is told of one task of two images."""

    images: tuple[str, str]
    """SHA-256, by position."""
    content: tuple[bytes, bytes]
    headers: tuple[dict[str, str], dict[str, str]]
    seconds: tuple[float, float]
    presentation: tuple[int, ...]
    left: int
    """The position of the image on the left."""
    number: int
    """The labeler's tasks before it."""
    assignment: int
    text: str
    """The task's JSON."""


async def looked(crowd: Crowd) -> list[Sight]:
    """What two labelers are sent, the first half by one and the rest by the other, who always prefer the left image."""
    found = []
    for index in range(2):
        async with Browser(crowd.url) as browser:
            await enter(browser, crowd, index)
            while len(found) < PROMPTS // (2 - index):
                answer = await browser.request("POST", "/api/assignments", json={"count": 15})
                assigned = answer.json()["assignments"]
                if not assigned:
                    break
                sent = []
                for task in assigned:
                    got = []
                    for name in task["images"]:
                        began = time.perf_counter()
                        image = await browser.request("GET", f"/images/{name}.png")
                        got.append((image.content, dict(image.headers), time.perf_counter() - began))
                    left, right = left_right((0, 1), task["presentation"], task["sides"])
                    content, headers, seconds = zip(*got, strict=True)
                    found.append(
                        Sight(
                            tuple(task["images"]), content, headers, seconds, tuple(task["presentation"]), left,
                            len(found), task["id"], str(task),
                        )
                    )  # fmt: skip
                    sent.append((task["id"], Judgement(str(uuid.uuid4()), "compare", left, right, "left")))
                await browser.send(sent)
    return found


def features(sight: Sight) -> list[float]:
    """Everything but the pixels, as numbers."""
    one, two = (
        [
            *bytes.fromhex(name)[:12], len(content), seconds, len(headers), sum(map(len, headers.values())),
            float(headers["content-length"]), *np.bincount(list(content[:48]), minlength=256)[:16],
        ]
        for name, content, headers, seconds in zip(
            sight.images, sight.content, sight.headers, sight.seconds, strict=True
        )
    )  # fmt: skip
    difference = [a - b for a, b in zip(one, two, strict=True)]
    told = [sight.presentation[0], sight.left, sight.number, sight.number % 2, sight.assignment, len(sight.text)]
    return [*one, *two, *difference, *map(float, told)]


def guessed(sights: list[Sight], truth: list[int]) -> list[float]:
    """The shares of tasks of which classifiers, trained on the others, say right whose image is the first."""
    x, y = np.array([features(sight) for sight in sights]), np.array(truth)
    classifiers = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        RandomForestClassifier(100, random_state=0),
    )
    return [float((cross_val_predict(classifier, x, y, cv=5) == y).mean()) for classifier in classifiers]


def compressed(data: bytes) -> bytes:
    """The image as a PNG encoder would usually write it."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.save(file, "PNG")
    return file.getvalue()


def test_who_sees_everything_but_the_pixels_is_at_chance(tmp_path: Path):
    """Flat images against noise, which could not differ more in how well they compress."""
    models = [image_folder(tmp_path / "flat", flat, PROMPTS), image_folder(tmp_path / "noise", noise, PROMPTS)]
    study = compared(tmp_path / "p", models, questions=["fidelity"], seed=5)
    with serving(tmp_path / "p") as served:
        sights = asyncio.run(looked(served.crowd(2)))
        with served.project.database.read() as session:
            tasks = {task.images: study.tasks[task.number].models[0] for task in read_tasks(session).values()}
    assert len(sights) == PROMPTS
    truth = [tasks[sight.images] for sight in sights]
    for sight in sights:
        for word in ("flat", "noise", str(tmp_path)):
            assert word not in sight.text
            assert not any(word in value for headers in sight.headers for value in headers.values())
    for share in guessed(sights, truth):
        chance = wilson(share * PROMPTS, PROMPTS, 0.999)
        assert chance.low <= 0.5 <= chance.high, share
    # The side on the left, and the first of the list, are each model's as often as by chance.
    for first in (truth, [model if sight.left == 0 else 1 - model for sight, model in zip(sights, truth, strict=True)]):
        chance = wilson(sum(first), PROMPTS, 0.999)
        assert chance.low <= 0.5 <= chance.high
    # The same classifiers say whose image it is, were files as large as usual.
    leaky = [replace(sight, content=tuple(map(compressed, sight.content))) for sight in sights]
    assert min(guessed(leaky, truth)) > 0.95


def brightness(x, prompts):
    return x.mean(dim=(1, 2, 3)).tolist()


def labelled(folder: Path, labelers: int, behaviour: Behaviour) -> None:
    with serving(folder) as served:
        asyncio.run(simulate(served.crowd(labelers), behaviour, brightness, 0))


def test_the_better_of_two_models_wins(tmp_path: Path):
    """Bright images against dark ones, by labelers who like bright ones and err in 1 / (1 + e^4) = 2 %."""
    bright = image_folder(tmp_path / "bright", lambda n: Image.new("RGB", (16, 16), (200, 150, 100 + n)), 12)
    dark = image_folder(tmp_path / "dark", lambda n: Image.new("RGB", (16, 16), (100, 50, n)), 12)
    compared(tmp_path / "p", [dark, bright], overlap=2)
    labelled(tmp_path / "p", 3, Behaviour(temperature=100 / 255 / 4))
    found = read_result(tmp_path / "p").result
    assert found.answers == 12 * 2 * 2
    assert found.reason == "every task has its answers"
    for one in found.asked:
        rate = one.preferences[0].rate
        assert rate is not None
        assert rate.high < 0.5, "the first model is the dark one"
        assert one.strengths.models == () or one.strengths.models[1].low > 0


def test_a_model_against_itself_is_undecided(tmp_path: Path):
    """Other images of the same distribution."""
    models = [
        image_folder(tmp_path / "once", noise, 20),
        image_folder(tmp_path / "again", lambda n: noise(1000 + n), 20),
    ]
    compared(tmp_path / "p", models, questions=["fidelity"], overlap=2)
    labelled(tmp_path / "p", 2, Behaviour(temperature=0.01))
    one = read_result(tmp_path / "p").result.asked[0].preferences[0]
    assert one.answers == 40
    for interval in (one.rate, one.wilson, one.bootstrap, one.sequential):
        assert interval is not None
        assert interval.low < 0.5 < interval.high
    assert not one.decided


def test_the_app_does_not_serve_who_made_an_image(tmp_path: Path):
    models = [image_folder(tmp_path / "a", flat, 2), image_folder(tmp_path / "b", noise, 2)]
    compared(tmp_path / "p", models)

    async def asked(crowd: Crowd) -> list[int]:
        async with Browser(crowd.url) as browser:
            await enter(browser, crowd, 0)
            paths = (
                "/comparison.json",
                "/static/comparison.json",
                "/images/comparison.json",
                "/images/../comparison.json",
            )
            return [(await browser.request("GET", path)).status_code for path in paths]

    with serving(tmp_path / "p") as served:
        assert asyncio.run(asked(served.crowd(1))) == [404, 404, 404, 404]
    assert read_study(tmp_path / "p").models[0].source == str(tmp_path / "a")
