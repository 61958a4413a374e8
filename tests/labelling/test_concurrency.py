"""Many labelers at once, on both databases: no place of a task is given twice, and none is lost."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa

from labelled import answers, labelers, png, project_of
from tastemaker.labelling import assignments
from tastemaker.labelling.judgements import from_row, save
from tastemaker.labelling.places import holding
from tastemaker.labelling.project import NewImage, NewTask, add_tasks
from tastemaker.labelling.ranking import Judgement
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Assignment, Batch, JudgementRow, Task

MINUTE = 60.0


def at_once(count, work):
    """The results of `work(index)` in so many threads, which begin together."""
    gate = threading.Barrier(count)

    def one(index):
        gate.wait()
        return work(index)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, range(count)))


def claim(project, user, count, now):
    with project.database.write() as session:
        return assignments.claim(session, project.settings, user, count, now)


def judge(project, user, judgements, now):
    with project.database.write() as session:
        return save(session, project.settings, user, judgements, now)


def counts(project):
    """Complete assignments that count, by task; and `Task.finished` by task."""
    done = sa.and_(Assignment.kind == "normal", Assignment.finished_at.is_not(None), ~Assignment.skipped)
    with project.database.read() as session:
        rows = session.execute(sa.select(Assignment.task_id, Assignment.user_id).where(done, ~Assignment.surplus)).all()
        finished = dict(session.execute(sa.select(Task.id, Task.finished)).all())
    assert len(set(rows)) == len(rows)
    return Counter(task for task, _ in rows), finished


@pytest.mark.parametrize("overlap", [1, 3])
def test_sixteen_labelers_label_each_task_as_often_as_asked(database, tmp_path, overlap):
    """All claim and judge at once until nothing is left."""
    with project_of(tmp_path / "p", database, 20, Labelling(overlap=overlap)) as project:
        users = labelers(project, 16)

        def work(index):
            rng, done = random.Random(index), 0
            while tasks := claim(project, users[index], rng.choice([1, 2, 5]), now=0.0):
                for task in tasks:
                    made = [(task.id, judgement) for judgement in answers(project.settings, task)]
                    receipts = judge(project, users[index], made, now=0.0)
                    assert [receipt.status for receipt in receipts] == ["saved"] * len(made)
                    assert receipts[-1].complete
                    done += 1
            return done

        assert sum(at_once(16, work)) == 20 * overlap
        found, finished = counts(project)
        assert set(found.values()) == {overlap}
        assert finished == found
        assert len(found) == 20


def test_no_place_is_given_twice(database, tmp_path):
    """All ask for the same few tasks at the same moment, and nobody finishes."""
    with project_of(tmp_path / "p", database, 6, Labelling(overlap=2)) as project:
        users = labelers(project, 16)
        given = at_once(16, lambda index: claim(project, users[index], 3, now=0.0))
        assert sum(map(len, given)) == 12
        with project.database.read() as session:
            held = session.execute(
                sa.select(Assignment.task_id, sa.func.count()).where(holding(1.0)).group_by(Assignment.task_id)
            ).all()
        assert sorted(count for _, count in held) == [2] * 6
        # Nobody gets more while the leases run, not even by asking again: the same tasks, with new leases.
        again = at_once(16, lambda index: claim(project, users[index], 3, now=1.0))
        assert [[task.id for task in tasks] for tasks in again] == [[task.id for task in tasks] for tasks in given]


def test_nothing_is_stranded_when_leases_end(database, tmp_path):
    """Half of the labelers take tasks and never come back; the others get these tasks when the leases have ended."""
    settings = Labelling(overlap=2, lease_minutes=15)
    with project_of(tmp_path / "p", database, 12, settings) as project:
        users = labelers(project, 16)
        gone, stay = users[:8], users[8:]
        taken = at_once(8, lambda index: claim(project, gone[index], 3, now=0.0))
        assert sum(map(len, taken)) == 24
        # All places are taken until the leases end, at 15 minutes.
        assert at_once(8, lambda index: claim(project, stay[index], 3, now=14.9 * MINUTE)) == [[]] * 8

        def work(index):
            while tasks := claim(project, stay[index], 2, now=15.1 * MINUTE):
                for task in tasks:
                    made = [(task.id, judgement) for judgement in answers(project.settings, task)]
                    judge(project, stay[index], made, now=15.1 * MINUTE)

        at_once(8, work)
        found, finished = counts(project)
        assert set(found.values()) == {2}
        assert len(found) == 12
        assert finished == found

        # One who was away judges after all: kept, and beyond what was asked for.
        late = next(index for index, tasks in enumerate(taken) if tasks)
        task = taken[late][0]
        receipts = judge(project, gone[late], [(task.id, j) for j in answers(settings, task)], now=16 * MINUTE)
        assert [receipt.status for receipt in receipts] == ["saved"]
        with project.database.read() as session:
            assert session.get(Assignment, task.id).surplus
        assert counts(project) == (found, finished)


def test_the_same_judgement_sent_many_times_at_once_is_stored_once(database, tmp_path):
    with project_of(tmp_path / "p", database, 1) as project:
        (user,) = labelers(project, 1)
        (task,) = claim(project, user, 1, now=0.0)
        (judgement,) = answers(project.settings, task)
        receipts = at_once(16, lambda index: judge(project, user, [(task.id, judgement)], now=0.0)[0])
        assert Counter(receipt.status for receipt in receipts) == {"saved": 1, "already saved": 15}
        assert all(receipt.complete for receipt in receipts)
        with project.database.read() as session:
            (row,) = session.scalars(sa.select(JudgementRow)).all()
            assert from_row(row) == judgement
        # The same id with another content is another judgement, and is not stored in its place.
        other = replace(judgement, outcome="tie")
        (receipt,) = judge(project, user, [(task.id, other)], now=0.0)
        assert (receipt.status, receipt.reason) == ("refused", "another judgement has this id")


def test_different_answers_sent_at_once_count_once(database, tmp_path):
    """Two clicks that both get through: the first is stored, the others are refused with a reason."""
    with project_of(tmp_path / "p", database, 1) as project:
        (user,) = labelers(project, 1)
        (task,) = claim(project, user, 1, now=0.0)
        (one,) = answers(project.settings, task)

        def click(index):
            return judge(project, user, [(task.id, replace(one, id=str(uuid.uuid4())))], now=0.0)[0]

        receipts = at_once(16, click)
        assert Counter(receipt.status for receipt in receipts) == {"saved": 1, "refused": 15}
        assert {receipt.reason for receipt in receipts if receipt.status == "refused"} == {
            "the task is complete: undo the last judgement first"
        }
        assert counts(project)[1] == {1: 1}


def test_undo_gives_the_place_back_and_takes_it_again(database, tmp_path):
    """A reopened task is still its labeler's while the lease runs, and others' afterwards."""
    with project_of(tmp_path / "p", database, 1) as project:
        first, second = labelers(project, 2)
        (task,) = claim(project, first, 1, now=0.0)
        (judgement,) = answers(project.settings, task)
        judge(project, first, [(task.id, judgement)], now=0.0)
        assert counts(project)[1] == {1: 1}
        undo = Judgement(str(uuid.uuid4()), "undo", supersedes=judgement.id)
        (receipt,) = judge(project, first, [(task.id, undo)], now=MINUTE)
        assert (receipt.status, receipt.complete) == ("saved", False)
        assert counts(project)[1] == {1: 0}
        assert claim(project, second, 1, now=2 * MINUTE) == []
        assert len(claim(project, second, 1, now=17 * MINUTE)) == 1
        # The first comes back with another answer, but the place is the second's now.
        (late,) = judge(project, first, [(task.id, replace(judgement, id=str(uuid.uuid4())))], now=18 * MINUTE)
        assert (late.status, late.complete) == ("saved", True)
        assert counts(project)[1] == {1: 0}


def test_a_skipped_task_goes_to_another_labeler(database, tmp_path):
    with project_of(tmp_path / "p", database, 1) as project:
        first, second = labelers(project, 2)
        (task,) = claim(project, first, 1, now=0.0)
        judge(project, first, [(task.id, Judgement(str(uuid.uuid4()), "skip"))], now=0.0)
        assert claim(project, first, 1, now=0.0) == []
        assert len(claim(project, second, 1, now=0.0)) == 1
        assert counts(project)[1] == {1: 0}


def test_tasks_that_a_run_waits_for_come_first(database, tmp_path):
    with project_of(tmp_path / "p", database, 2) as project:
        (user,) = labelers(project, 1)
        with project.database.write() as session:
            session.add(Batch(id=1, key="k", prompts=["new"] * 2, images=["a", "b"], created=0.0))
        add_tasks(project, [NewTask("new", [NewImage(png(100)), NewImage(png(101))])], batch=1)
        assert [task.prompt for task in claim(project, user, 3, now=0.0)] == ["new", "prompt 0", "prompt 1"]
