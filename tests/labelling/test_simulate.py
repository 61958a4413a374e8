"""Simulated labelers at the real app over HTTP, in all modes and on both databases."""

from __future__ import annotations

import asyncio
import io
import threading
from dataclasses import replace

import pytest
import sqlalchemy as sa
from PIL import Image

from label_serving import serving
from labelled import png, project_of
from tastemaker.cli.main import main
from tastemaker.data.images import to_tensor
from tastemaker.errors import ConfigError
from tastemaker.labelling import ranking
from tastemaker.labelling.image_files import image_path
from tastemaker.labelling.judgements import read_judgements
from tastemaker.labelling.project import NewImage, NewTask, add_tasks, open_project
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.simulate import Browser, Crowd, Memory, Unanswered, simulate
from tastemaker.labelling.tables import Assignment, JudgementRow, Task, TaskImage
from tastemaker.labelling.taste import Behaviour, utility_of

EXACT = Behaviour(temperature=0.0)
SETTINGS = [
    Labelling("pair", overlap=2), Labelling("rank", 4, overlap=2), Labelling("rank", 4, transitive=False),
    Labelling("best", 4), Labelling("rate", 3),
]  # fmt: skip


def redness(x, prompts):
    """All images of the tests differ in it."""
    return x[:, 0].mean(dim=(1, 2)).tolist()


def run(folder, settings, behaviour=EXACT, database=None, tasks=8, labelers=3, utility=redness, **more):
    """A project labelled by simulated people; what they did."""
    project_of(folder, database, tasks, settings).close()
    with serving(folder) as served:
        return asyncio.run(simulate(served.crowd(labelers), behaviour, utility, 0, **more))


def states(folder):
    """(images by position, state) of all assignments."""
    with open_project(folder) as project, project.database.read() as session:
        found = []
        for row in session.scalars(sa.select(Assignment).order_by(Assignment.id)):
            judgements = read_judgements(session, row.id)
            images = session.scalars(
                sa.select(TaskImage.sha256).where(TaskImage.task_id == row.task_id).order_by(TaskImage.position)
            ).all()
            found.append((images, ranking.state(project.settings, row.presentation, judgements), row))
        finished = session.scalars(sa.select(Task.finished)).all()
        session.expunge_all()
        return found, finished


def values(folder, images):
    x = [to_tensor(Image.open(io.BytesIO(image_path(folder, name).read_bytes()))) for name in images]
    return [one[0].mean().item() for one in x]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.mode}{'' if s.transitive else ' all pairs'}")
def test_without_noise_a_project_says_what_the_utility_says(tmp_path, settings):
    folder = tmp_path / "p"
    tally = run(folder, settings)
    assert tally.compared == tally.agreed > 0
    assert not tally.refused
    found, finished = states(folder)
    assert finished == [settings.overlap] * 8
    assert len(found) == tally.tasks == 8 * settings.overlap
    for images, state, _ in found:
        liked = values(folder, images)
        best_first = sorted(range(len(liked)), key=lambda i: -liked[i])
        if settings.mode in ("pair", "rank"):
            assert state.order == tuple((image,) for image in best_first)
        elif settings.mode == "best":
            assert state.best == best_first[0]
        else:
            assert state.ratings == {i: "up" if liked[i] >= 0.5 else "down" for i in range(len(liked))}


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True)
def test_they_do_all_that_people_do(database, tmp_path):
    """Noise, ties, skips, undos and corrections of the order: all of it is stored, and none refused."""
    folder = tmp_path / "p"
    rude = Behaviour(temperature=0.05, tie=0.01, bad=0.3, skip=0.03, undo=0.1, correct=0.5)
    tally = run(folder, Labelling("rank", 4, overlap=2), rude, database, tasks=12, labelers=5, stay=2.0)
    assert not tally.refused
    assert {"compare", "order", "undo"} <= tally.kinds.keys()
    assert 0.5 < tally.agreed / tally.compared < 1
    found, finished = states(folder)
    assert finished == [2] * 12
    assert sum(row.skipped for _, _, row in found) == tally.kinds["skip"]
    with open_project(folder) as project, project.database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(JudgementRow)) == tally.votes


def test_images_are_looked_at_together_and_once(tmp_path):
    """New images of one size in one call of the utility, images of several sizes one by one."""
    asked = []

    def counted(x, prompts):
        asked.append(x.shape)
        assert len(prompts) == len(x)
        return redness(x, prompts)

    def image(red, side):
        return Image.new("RGB", (side, side), (red, 0, 0))

    memory = Memory(counted)
    first = {"a": image(51, 4), "b": image(102, 4)}
    assert asyncio.run(memory.look("p", first)) == pytest.approx({"a": 0.2, "b": 0.4})  # 51 / 255, 102 / 255
    more = first | {"c": image(153, 4), "d": image(204, 8)}
    assert asyncio.run(memory.look("p", more)) == pytest.approx({"a": 0.2, "b": 0.4, "c": 0.6, "d": 0.8})
    assert asyncio.run(memory.look("p", more)) == pytest.approx({"a": 0.2, "b": 0.4, "c": 0.6, "d": 0.8})
    assert asked == [(2, 3, 4, 4), (1, 3, 4, 4), (1, 3, 8, 8)]


def test_who_skips_everything_leaves_it_to_others(tmp_path):
    tally = run(tmp_path / "p", Labelling(), replace(EXACT, skip=1.0), tasks=5, labelers=2, stay=3.0)
    assert tally.kinds == {"skip": 10}
    found, finished = states(tmp_path / "p")
    assert finished == [0] * 5
    assert all(row.skipped for _, _, row in found)


def test_position_bias_is_seen_in_the_share_of_the_left(tmp_path):
    """With a bias of two temperatures over images that are equally good, sigmoid(2) = 88% of the answers are left."""
    biased = Behaviour(temperature=0.1, left_bias=0.2)
    tally = run(
        tmp_path / "p", Labelling(ties=False), biased, tasks=150, labelers=2, utility=lambda x, p: [0.5] * len(p)
    )
    assert tally.outcomes["left"] + tally.outcomes["right"] == 150
    assert 0.78 < tally.outcomes["left"] / 150 < 0.96


def test_the_same_seed_answers_the_same(tmp_path):
    noisy = Behaviour(temperature=0.2)
    answers = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        # One labeler: who of several gets which task is a matter of time.
        run(folder, Labelling(), noisy, labelers=1)
        answers.append([state.order for _, state, _ in states(folder)[0]])
    assert answers[0] == answers[1]


def test_a_number_of_votes(tmp_path):
    tally = run(tmp_path / "p", Labelling(), tasks=10, labelers=2, votes=3)
    assert tally.votes == 6


def test_they_wait_for_new_tasks(tmp_path):
    """While `stay` seconds have not passed since the last."""
    folder = tmp_path / "p"
    project_of(folder, None, 1, Labelling()).close()
    with serving(folder) as served:

        def add():
            add_tasks(served.project, [NewTask("later", [NewImage(png(90)), NewImage(png(91))])])

        timer = threading.Timer(1.0, add)
        timer.start()
        tally = asyncio.run(simulate(served.crowd(1), EXACT, redness, 0, stay=3.0))
        timer.join()
    assert tally.tasks == 2


def test_the_judges_utility_needs_its_world(tmp_path):
    with pytest.raises(ConfigError, match="the prompt 'prompt 0' is none of the bundled model's world"):
        run(tmp_path / "p", Labelling(), utility=utility_of("judge"), labelers=1)


# ---------------------------------------------------------------- the browser


def test_who_is_not_invited_stays_outside(tmp_path):
    folder = tmp_path / "p"
    project_of(folder, None, 1, Labelling()).close()
    with serving(folder) as served:
        stranger = Crowd(served.url, ["stranger"], ["no password"], "wrong-invitation")
        with pytest.raises(Unanswered, match="lets stranger neither join nor log in"):
            asyncio.run(simulate(stranger, EXACT, redness, 0))

        async def ask():
            async with Browser(served.url) as browser:
                await browser.get("/api/me")

        with pytest.raises(Unanswered, match="GET /api/me came back with status 401"):
            asyncio.run(ask())


def test_who_comes_back_logs_in(tmp_path):
    folder = tmp_path / "p"
    project_of(folder, None, 4, Labelling()).close()
    with serving(folder) as served:
        crowd = served.crowd(1)
        assert asyncio.run(simulate(crowd, EXACT, redness, 0, votes=1)).votes == 1
        assert asyncio.run(simulate(replace(crowd, invitation=None), EXACT, redness, 0)).votes == 3


def test_nobody_there():
    async def ask():
        async with Browser("http://127.0.0.1:9", wait=0.3) as browser:
            await browser.get("/api/me")

    with pytest.raises(Unanswered, match=r"did not answer for 0.3 s: ConnectError"):
        asyncio.run(ask())


# ---------------------------------------------------------------- the command


def test_the_command(tmp_path, capsys):
    folder = tmp_path / "p"
    project_of(folder, None, 6, Labelling(overlap=2)).close()
    words = ["label", "simulate", str(folder), "--labelers", "2", "--temperature", "0", "--utility", "colourfulness"]
    with serving(folder) as served:
        assert main(words) == 0
        said = capsys.readouterr().out
        assert f"2 simulated labelers of {served.url}" in said
        assert "12 judgements of 12 tasks in" in said
        assert "100.0% of 12 preferences are as the hidden utility has them" in said
        assert "preferences are for the left image" in said
        # Again: the same labelers, for whom nothing is left.
        assert main(words) == 0
        assert "0 judgements of 0 tasks" in capsys.readouterr().out
        # By an invitation's link, as from another machine.
        crowd = served.crowd(1)
        link = f"{served.url}/join/{crowd.invitation}"
        assert main(["label", "simulate", link, "--labelers", "1", "--utility", "colourfulness"]) == 0
        assert "0 judgements" in capsys.readouterr().out
    assert states(folder)[1] == [2] * 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give a project that is being served"),
        (["{folder}"], "is not being served: start it with `tastemaker label serve"),
        (["http://127.0.0.1:9"], "is no invitation: give its whole link, http://HOST:PORT/join/TOKEN"),
        (["{folder}", "--labelers", "0"], "--labelers is 0, but must be at least 1"),
        (["{folder}", "--temperature", "-1"], "temperature is -1"),
        (["{folder}", "--weights", "colour"], "the weight 'colour' is none: give ATTRIBUTE=NUMBER"),
        (["{folder}", "--utility", "nothing"], "unknown reward 'nothing'"),
    ],
)
def test_wrong_words(tmp_path, capsys, words, said):
    folder = tmp_path / "p"
    project_of(folder, None, 1, Labelling()).close()
    assert main(["label", "simulate", *(word.format(folder=folder) for word in words)]) == 2
    assert said in capsys.readouterr().err
