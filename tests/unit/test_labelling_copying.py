"""Backups of labelling projects, and pairs for training out of projects."""

from __future__ import annotations

import json
import threading
import time

import pytest
import sqlalchemy as sa
import torch

from label_projects import add_user, claimed, image, judged, make_project, new_task, rows
from tastemaker.errors import ConfigError, DataError
from tastemaker.labelling.copying import copy_project
from tastemaker.labelling.export import ExportOptions, export_project
from tastemaker.labelling.judgements import read_judgements
from tastemaker.labelling.pairs import load_pairs
from tastemaker.labelling.project import add_tasks, open_project
from tastemaker.labelling.ranking import state
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Assignment, Base, JudgementRow, LoginSession, Task, User


def content(project):
    """All rows of all tables but those of logged-in browsers."""
    with project.database.read() as session:
        return {
            table.name: sorted(
                json.dumps(dict(row._mapping), sort_keys=True) for row in session.execute(sa.select(table))
            )
            for table in Base.metadata.sorted_tables
            if table.name != LoginSession.__tablename__
        }


def test_a_copy_has_everything_but_sessions(tmp_path):
    with make_project(tmp_path / "p", Labelling(gold_rate=0.4), tasks=3) as project:
        add_tasks(project, [new_task(project.settings, 9, gold=[(0, 1, "tie")])])
        ann = add_user(project, "ann")
        with project.database.write() as session:
            session.execute(sa.update(User).values(password_hash="hash"))
            session.add(LoginSession(token_hash="x", user_id=ann, created=0.0, expires=9e9))
        for assigned in claimed(project, ann, 2, 0.0):
            judged(project, ann, assigned, 1.0)
        done = copy_project(project, tmp_path / "copy")
        assert done.images == 8
        with open_project(tmp_path / "copy") as copy:
            assert content(copy) == content(project)
            assert (copy.uuid, copy.settings) == (project.uuid, project.settings)
            assert rows(copy, sa.select(LoginSession.token_hash)) == []
            assert {p.name for p in (copy.folder / "images").rglob("*.png")} == {
                p.name for p in (project.folder / "images").rglob("*.png")
            }
            judged(copy, ann, claimed(copy, ann, 1, 2.0)[0], 2.0)


def test_a_copy_is_consistent_while_people_label(tmp_path):
    with make_project(tmp_path / "p", Labelling(mode="rank", images=4), tasks=100) as project:
        users = [add_user(project, f"user {n}") for n in range(2)]
        stop, count = threading.Event(), [0, 0]

        def label(place: int) -> None:
            while not stop.is_set():
                found = claimed(project, users[place], 1, 0.0)
                if not found:
                    return
                count[place] += len(judged(project, users[place], found[0], 0.0))

        threads = [threading.Thread(target=label, args=(place,)) for place in (0, 1)]
        for thread in threads:
            thread.start()
        while sum(count) < 20:
            time.sleep(0.01)
        copies = []
        for n in range(2):
            before = sum(count)
            copies.append((before, copy_project(project, tmp_path / f"copy-{n}")))
        stop.set()
        for thread in threads:
            thread.join()
        total = len(rows(project, sa.select(JudgementRow.id)))
        assert total >= sum(count) > copies[0][0]
        originals = {row.id: row for row in _rows(project, JudgementRow)}
    for before, done in copies:
        with open_project(done.folder) as copy, copy.database.read() as session:
            kept = {row.id: row for row in _rows(copy, JudgementRow)}
            # What had been acknowledged when the backup began is in it, and nothing else is.
            assert before <= len(kept) == done.rows["judgement"] <= total
            assert all(originals[key] == row for key, row in kept.items())
            assignments = {row.id: row for row in _rows(copy, Assignment)}
            assert {row.assignment_id for row in kept.values()} <= assignments.keys()
            finished = dict.fromkeys(rows(copy, sa.select(Task.id)), 0)
            for row in assignments.values():
                found = state(copy.settings, row.presentation, read_judgements(session, row.id))
                assert found.complete == (row.finished_at is not None)
                finished[row.task_id] += found.complete
            assert finished == {row.id: row.finished for row in _rows(copy, Task)}


def _rows(project, kind):
    with project.database.read() as session:
        return session.execute(sa.select(kind.__table__)).all()


def test_copies_that_cannot_be_made(tmp_path):
    with make_project(tmp_path / "p", Labelling(), tasks=1) as project:
        with pytest.raises(ConfigError, match="is within the project"):
            copy_project(project, tmp_path / "p/copy")
        (tmp_path / "full").mkdir()
        (tmp_path / "full/x").write_text("")
        with pytest.raises(ConfigError, match="exists already"):
            copy_project(project, tmp_path / "full")
        next((tmp_path / "p/images").rglob("*.png")).write_bytes(b"x")
        with pytest.raises(DataError, match="is damaged"):
            copy_project(project, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


# ---------------------------------------------------------------- pairs of a project


def labelled(folder, answers, **settings):
    """A project of pairs in which each labeler prefers image 0, image 1 or neither (None) of each task."""
    project = make_project(folder, Labelling(overlap=len(answers), **settings), tasks=len(next(iter(answers.values()))))
    for name, winners in answers.items():
        user = add_user(project, name)
        for assigned, winner in zip(claimed(project, user, len(winners), 0.0), winners, strict=True):
            judged(project, user, assigned, 0.0, lambda i, w=winner: 0.0 if w is None else float(i == w))
    return project


def test_pairs_of_a_project_are_its_votes(tmp_path):
    with labelled(tmp_path / "p", {"bob": (0, 1, None), "ann": (0, 0, 1)}, validation=0.0) as project:
        found = load_pairs(str(tmp_path / "p"))
        assert found.prompts == ("prompt 0", "prompt 0", "prompt 1", "prompt 1", "prompt 2")
        assert found.ties == 1
        # By task and name: ann and bob 0, ann 0, bob 1, ann 1.
        for index, (task, winner) in enumerate([(0, 0), (0, 0), (1, 0), (1, 1), (2, 1)]):
            better, worse = found.images(index, 8, 8)
            for one, number in ((better, winner), (worse, 1 - winner)):
                red, green, blue = image(100 * task + number).getpixel((0, 0))
                assert torch.equal(one[:, 0, 0] * 255, torch.tensor([red, green, blue], dtype=torch.float32))
        assert found.places(3) == f"{tmp_path / 'p'}, task 1, labeler bob"
        # The same pairs are in an export, which is read by data.pairs.
        export_project(project, tmp_path / "out", "pairs", ExportOptions(table="jsonl"))
    exported = load_pairs(str(tmp_path / "out/train.jsonl"))
    assert exported.prompts == found.prompts
    for index in range(5):
        assert torch.equal(exported.images(index, 8, 8), found.images(index, 8, 8))


def test_pairs_of_a_project_are_split_by_its_prompts(tmp_path):
    with labelled(tmp_path / "p", {"ann": (0,) * 12}, validation=0.5) as project:
        with project.database.read() as session:
            parts = dict(session.execute(sa.text("select text, split from prompt")).all())
        for split in ("train", "validation"):
            prompts = load_pairs(str(tmp_path / "p"), split).prompts
            assert set(prompts) == {text for text, part in parts.items() if part == split}
            assert prompts
        with pytest.raises(DataError, match="has no split 'test'; it has train and validation"):
            load_pairs(str(tmp_path / "p"), "test")


def test_the_digest_of_a_project_changes_with_its_labels(tmp_path):
    with labelled(tmp_path / "p", {"ann": (0, 1)}, validation=0.0) as project:
        digest = load_pairs(str(tmp_path / "p")).digest
        copy_project(project, tmp_path / "copy")
        add_tasks(project, [new_task(project.settings, 5)])
        assert load_pairs(str(tmp_path / "p")).digest == digest
        judged(project, 1, claimed(project, 1, 1, 0.0)[0], 0.0)
        assert load_pairs(str(tmp_path / "p")).digest != digest
    assert load_pairs(str(tmp_path / "copy")).digest == digest


def test_projects_without_pairs_and_with_lost_images(tmp_path):
    labelled(tmp_path / "p", {"ann": (None,)}, validation=0.0).close()
    with pytest.raises(DataError, match="has no pair of its split train in which an image is preferred"):
        load_pairs(str(tmp_path / "p"))
    labelled(tmp_path / "q", {"ann": (0,)}, validation=0.0).close()
    with pytest.raises(ConfigError, match="is a labelling project, of which each vote is a pair by itself"):
        load_pairs(str(tmp_path / "q"), probabilities=True)
    next((tmp_path / "q/images").rglob("*.png")).unlink()
    with pytest.raises(DataError, match="task 0, labeler ann: there is no image"):
        load_pairs(str(tmp_path / "q"))
