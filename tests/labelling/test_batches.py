"""Batches of a training run: their tasks, their keys, and rewards worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import sqlalchemy as sa
from PIL import Image

from labelled import answers, labelers, project_of
from tastemaker.errors import DataError
from tastemaker.labelling import assignments, batches
from tastemaker.labelling.image_files import image_path
from tastemaker.labelling.judgements import save
from tastemaker.labelling.project import create_project
from tastemaker.labelling.ranking import Judgement, state
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Assignment, Batch, ImageRow, Task, TaskImage

PAIR, RATE = Labelling("pair"), Labelling("rate")


def images(count, start=0):
    """Images that all differ."""
    return [Image.new("RGB", (4, 4), (start + number, 0, 0)) for number in range(count)]


def label(project, user, best_first=None, now=1.0, skip=False):
    """The user's next task, labelled; with `best_first` giving for each prompt its images' order."""
    with project.database.write() as session:
        tasks = assignments.claim(session, project.settings, user, 1, now)
    if not tasks:
        return None
    (task,) = tasks
    order = None if best_first is None else best_first[task.prompt]
    made = [Judgement(f"skip {task.id}", "skip")] if skip else answers(project.settings, task, order)
    with project.database.write() as session:
        receipts = save(session, project.settings, user, [(task.id, one) for one in made], now)
    assert {receipt.status for receipt in receipts} == {"saved"}
    return task


def look(project, key):
    with project.database.read() as session:
        return batches.look_up(session, project.settings, key)


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize(
    ("settings", "count", "sizes"),
    [
        (PAIR, 2, [2]), (PAIR, 6, [2, 2, 2]),
        (Labelling("best", 4), 4, [4]), (Labelling("best", 4), 3, [3]), (Labelling("best", 4), 2, [2]),
        # Not 4 and 1, of which one could not be compared.
        (Labelling("best", 4), 5, [3, 2]), (Labelling("rank", 4), 9, [3, 3, 3]), (Labelling("rank", 5), 12, [4, 4, 4]),
        (RATE, 1, [1]), (RATE, 3, [1, 1, 1]), (Labelling("rate", 4), 5, [3, 2]),
    ],
)  # fmt: skip
def test_images_of_a_prompt_become_tasks(settings, count, sizes):
    tasks = batches.grouped(settings, ["a"] * count)
    assert [len(task) for task in tasks] == sizes
    assert [index for task in tasks for index in task] == list(range(count))


@pytest.mark.parametrize(
    ("settings", "count", "said"),
    [
        (
            PAIR,
            1,
            "1 image of one prompt cannot be put into tasks of mode pair, which have 2 images each: give 2",
        ),
        (PAIR, 3, "3 images of one prompt .* give 2, 4, 6, ... images of each prompt"),
        (Labelling("best", 4), 1, "of mode best, which have 2 to 4 images: give 4, or a multiple of that"),
        (Labelling("rank", 2), 3, "of mode rank, which have 2 to 2 images: give 2, or a multiple of that"),
    ],
)
def test_what_cannot_be_compared_is_refused(settings, count, said):
    with pytest.raises(DataError, match=f"{said}.*the prompt 'a red star'; in a run, sampling.per_prompt"):
        batches.grouped(settings, ["a red star"] * count)


def test_prompts_may_be_mixed():
    assert batches.grouped(PAIR, ["a", "b", "b", "a"]) == [(0, 3), (1, 2)]


# ---------------------------------------------------------------- submitting


def test_a_batch_is_known_by_its_content(database, tmp_path):
    with create_project(tmp_path / "p", PAIR, database) as project:
        first = batches.submit(project, ["a", "a"], images(2), 0.0)
        assert (first.state, first.tasks, first.labelled, first.rewards) == ("waiting", 1, 0, None)
        assert batches.submit(project, ["a", "a"], images(2), 5.0) == first
        others = [
            batches.submit(project, ["b", "b"], images(2), 0.0),
            batches.submit(project, ["a", "a"], images(2)[::-1], 0.0),
            batches.submit(project, ["a", "a"], images(2, start=7), 0.0),
            batches.submit(project, ["a", "a"], [image.resize((2, 8)) for image in images(2)], 0.0),
        ]
        assert len({one.key for one in [first, *others]}) == 5
        with project.database.read() as session:
            assert session.scalar(sa.select(sa.func.count()).select_from(Task)) == 5
            assert session.scalar(sa.select(Batch.created).where(Batch.key == first.key)) == 0.0
            names = session.scalars(sa.select(ImageRow.sha256)).all()
            sources = session.scalars(sa.select(TaskImage.model).where(TaskImage.task_id == 1)).all()
        assert all(image_path(project.folder, name).is_file() for name in names)
        assert sources == [f"batch {first.key[:12]}"] * 2
        assert look(project, "0" * 64) is None


def test_tasks_of_a_batch_come_first(database, tmp_path):
    with project_of(tmp_path / "p", database, 2, PAIR) as project:
        batches.submit(project, ["new", "new"], images(2), 0.0)
        (user,) = labelers(project, 1)
        assert [label(project, user).prompt for _ in range(3)] == ["new", "prompt 0", "prompt 1"]


# ---------------------------------------------------------------- rewards


def test_rewards_of_thumbs(database, tmp_path):
    """Two labelers: both like the first image, one the second, none the third; images are sent mixed."""
    with create_project(tmp_path / "p", replace(RATE, overlap=2), database) as project:
        sent = batches.submit(project, ["a", "b", "c"], images(3), 0.0)
        for user, liked in zip(labelers(project, 2), ["ab", "a"], strict=True):
            for _ in range(3):
                # `answers` gives a thumb up to the image that is first in the order: the only one, or none of them.
                label(project, user, {prompt: [0] if prompt in liked else [1] for prompt in "abc"})
        found = look(project, sent.key)
        assert (found.state, found.labelled, found.tasks) == ("finished", 3, 3)
        assert found.rewards == (1.0, 0.5, 0.0)


def test_rewards_of_the_best(database, tmp_path):
    """Of 3 labelers two choose the third image of `a`, one its first; all the first image of `b`."""
    with create_project(tmp_path / "p", Labelling("best", 3, overlap=3), database) as project:
        sent = batches.submit(project, ["a", "b", "a", "b", "a"], images(5), 0.0)
        assert sent.tasks == 2
        for user, best in zip(labelers(project, 3), [2, 2, 0], strict=True):
            for _ in range(2):
                label(project, user, {"a": [best], "b": [0]})
        thirds = [float(Fraction(1, 3)), 1.0, 0.0, 0.0, float(Fraction(2, 3))]
        assert look(project, sent.key).rewards == pytest.approx(thirds, abs=1e-15)


def test_rewards_of_an_order(database, tmp_path):
    """Of 3 images one is preferred to both others, one to one: 2/2, 1/2, 0/2."""
    with create_project(tmp_path / "p", Labelling("rank", 3), database) as project:
        sent = batches.submit(project, ["a"] * 3, images(3), 0.0)
        (user,) = labelers(project, 1)
        label(project, user, {"a": [1, 2, 0]})
        assert look(project, sent.key).rewards == (0.0, 1.0, 0.5)


def test_ties_count_half():
    """0 and 1 are equal and better than 2: 1.5 of 2 each, and 0. Two that are both bad have 1 of 2 each."""
    settings = Labelling("rank", 3, confirm=False)

    def values(first, last):
        made = [
            Judgement("x", "compare", left=0, right=1, outcome=first),
            Judgement("y", "compare", left=2, right=0, outcome=last),
        ]
        found = state(settings, (0, 1, 2), made)
        assert found.complete
        return batches.image_rewards(settings, (0, 1, 2), found)

    assert values("tie", "right") == [0.75, 0.75, 0.0]
    assert values("both_bad", "right") == [0.75, 0.75, 0.0]
    assert values("tie", "tie") == [0.5, 0.5, 0.5]


def test_none_is_good():
    settings = Labelling("best", 2)
    found = state(settings, (1, 0), [Judgement("x", "best", image=None)])
    assert batches.image_rewards(settings, (1, 0), found) == [0.0, 0.0]


# ---------------------------------------------------------------- waiting


def test_a_skipped_task_goes_to_another_and_nothing_is_made_up(database, tmp_path):
    with create_project(tmp_path / "p", RATE, database) as project:
        first, second = labelers(project, 2)
        sent = batches.submit(project, ["a"], images(1), 0.0)
        label(project, first, skip=True)
        assert look(project, sent.key) == sent
        assert label(project, first) is None
        label(project, second)
        assert look(project, sent.key).rewards == (1.0,)


def test_an_answer_that_came_too_late_does_not_count(database, tmp_path):
    """After its lease another labeler has labelled the task."""
    with create_project(tmp_path / "p", RATE, database) as project:
        first, second = labelers(project, 2)
        sent = batches.submit(project, ["a"], images(1), 0.0)
        with project.database.write() as session:
            (task,) = assignments.claim(session, project.settings, first, 1, 0.0)
        label(project, second, {"a": [1]}, now=10_000.0)
        with project.database.write() as session:
            save(
                session, project.settings, first, [(task.id, one) for one in answers(project.settings, task)], 10_001.0
            )
            assert session.get(Assignment, task.id).surplus
        assert look(project, sent.key).rewards == (0.0,)


def test_a_withdrawn_batch_is_asked_for_no_more_and_again_when_it_is_sent_again(database, tmp_path):
    with create_project(tmp_path / "p", RATE, database) as project:
        first, second = labelers(project, 2)
        sent = batches.submit(project, ["a", "b"], images(2), 0.0)
        label(project, first)
        with project.database.write() as session:
            (open_task,) = assignments.claim(session, project.settings, first, 1, 1.0)
            gone = batches.withdraw(session, project.settings, sent.key)
            assert (gone.state, gone.labelled, gone.rewards) == ("withdrawn", 1, None)
            assert batches.withdraw(session, project.settings, "0" * 64) is None
        assert label(project, second) is None
        with project.database.write() as session:
            assert assignments.renew(session, project.settings, first, [open_task.id], 1.5) == []
            (receipt,) = save(
                session, project.settings, first, [(open_task.id, answers(project.settings, open_task)[0])], 2.0
            )
        assert (receipt.status, receipt.reason) == ("refused", "the task is no longer asked for")
        again = batches.submit(project, ["a", "b"], images(2), 3.0)
        assert (again.key, again.state, again.labelled) == (sent.key, "waiting", 1)
        with project.database.write() as session:
            assert assignments.renew(session, project.settings, first, [open_task.id], 3.5) == [open_task.id]
        label(project, second, now=10_000.0)
        done = look(project, sent.key)
        assert (done.state, done.rewards) == ("finished", (1.0, 1.0))
        # What is finished stays.
        with project.database.write() as session:
            assert batches.withdraw(session, project.settings, sent.key) == done


def test_batches_in_a_list(database, tmp_path):
    with create_project(tmp_path / "p", RATE, database) as project:
        (user,) = labelers(project, 1)
        done = batches.submit(project, ["a", "b"], images(2), 0.0)
        for _ in range(2):
            label(project, user)
        half = batches.submit(project, ["c", "d"], images(2, 10), 1.0)
        label(project, user)
        gone = batches.submit(project, ["e"], images(1, 20), 2.0)
        with project.database.write() as session:
            batches.withdraw(session, project.settings, gone.key)
            assert batches.summaries(session, project.settings) == [
                batches.BatchSummary(gone.key, "withdrawn", 1, 0, 2.0),
                batches.BatchSummary(half.key, "waiting", 2, 1, 1.0),
                batches.BatchSummary(done.key, "finished", 2, 2, 0.0),
            ]
