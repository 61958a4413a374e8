"""Labelling projects: folders, databases, tasks, and who gets which task for how long."""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import fields, replace

import pytest
import sqlalchemy as sa
from PIL import Image

from label_projects import add_user, claimed, image, judged, make_project, new_task, rows, saved
from tastemaker.errors import ConfigError, DataError
from tastemaker.labelling import database as db
from tastemaker.labelling.assignments import claim, find, recent, release, renew
from tastemaker.labelling.image_files import image_path, store_image
from tastemaker.labelling.project import (
    NewImage,
    NewTask,
    add_tasks,
    change_settings,
    create_project,
    is_project,
    open_project,
    split_of,
)  # fmt: skip
from tastemaker.labelling.ranking import Judgement, left_right
from tastemaker.labelling.settings import Labelling, from_json, to_json
from tastemaker.labelling.tables import Assignment, Base, ImageRow, JudgementRow, ProjectRow, Prompt, Task, TaskImage

HOUR = 3600.0


def one_judgement(assigned, outcome="left") -> Judgement:
    left, right = left_right((0, 1), assigned.presentation, assigned.sides)
    return Judgement(str(uuid.uuid4()), "compare", left, right, outcome)


# ---------------------------------------------------------------- projects


def test_a_project_is_read_as_it_was_made(tmp_path):
    settings = Labelling(
        mode="rank", images=3, title="Titel", question="?", instructions="*x*", transitive=False, confirm=False,
        ties=False, both_bad=False, skip=False, marks=("a", "b"), overlap=3, gold_rate=0.1, repeat_rate=0.2,
        lease_minutes=2.5, validation=0.4, seed=7,
    )  # fmt: skip
    assert all(getattr(settings, f.name) != getattr(Labelling(), f.name) for f in fields(Labelling))
    assert from_json(json.loads(json.dumps(to_json(settings)))) == settings
    make_project(tmp_path / "p", settings, tasks=2).close()
    assert is_project(tmp_path / "p")
    with open_project(tmp_path / "p") as project:
        assert project.settings == settings
        assert rows(project, sa.select(Prompt.text).order_by(Prompt.id)) == ["prompt 0", "prompt 1"]
        images = rows(project, sa.select(TaskImage.sha256).where(TaskImage.task_id == 1).order_by(TaskImage.position))
        assert len(set(images)) == 3
        with Image.open(image_path(project.folder, images[2])) as stored:
            assert stored.getpixel((0, 0)) == (2, 0, 0)
        assert rows(project, sa.select(TaskImage.model).where(TaskImage.task_id == 2)) == [
            "model 0",
            "model 1",
            "model 2",
        ]


def test_a_copied_folder_is_the_same_project(tmp_path):
    with make_project(tmp_path / "p", Labelling()) as project:
        user = add_user(project, "ann")
        judged(project, user, claimed(project, user, 1, 0.0)[0], 1.0)
    shutil.copytree(tmp_path / "p", tmp_path / "q")
    shutil.rmtree(tmp_path / "p")
    with open_project(tmp_path / "q") as project:
        assert len(rows(project, sa.select(JudgementRow))) == 1
        for name in rows(project, sa.select(ImageRow.sha256)):
            assert image_path(project.folder, name).is_file()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "pairs"}, "did you mean 'pair'"),
        ({"mode": "pair", "images": 3}, "2 images, not 3"),
        ({"mode": "rank", "images": 1}, "2 to 16"),
        ({"mode": "rank", "images": 17}, "2 to 16"),
        ({"overlap": 0}, "overlap is 0"),
        ({"gold_rate": 0.6}, "gold_rate is 0.6"),
        ({"lease_minutes": float("nan")}, "must be finite"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"marks": ("a", "a")}, "different words"),
        ({"marks": (" a",)}, "no spaces around"),
        ({"title": "x" * 201}, "201 characters"),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ConfigError, match=words):
        Labelling(**settings)


def test_unknown_settings():
    with pytest.raises(ConfigError, match="did you mean 'overlap'"):
        from_json({"overlaps": 2})


def test_folders_that_are_no_projects(tmp_path):
    with pytest.raises(ConfigError, match="no labelling project"):
        open_project(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ConfigError, match="is there already"):
        create_project(tmp_path / "used", Labelling())
    make_project(tmp_path / "p", Labelling()).close()
    (tmp_path / "p" / "labels.db").unlink()
    with pytest.raises(ConfigError, match="copy the whole folder"):
        open_project(tmp_path / "p")
    make_project(tmp_path / "q", Labelling()).close()
    (tmp_path / "q" / "project.json").write_text('{"format": 2, "uuid": "", "database": null}')
    with pytest.raises(ConfigError, match="format 2"):
        open_project(tmp_path / "q")
    (tmp_path / "q" / "project.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        open_project(tmp_path / "q")


def test_the_database_must_be_the_projects_own(tmp_path):
    make_project(tmp_path / "p", Labelling()).close()
    make_project(tmp_path / "q", Labelling()).close()
    shutil.copy(tmp_path / "p" / "labels.db", tmp_path / "q" / "labels.db")
    with pytest.raises(ConfigError, match="has another project"):
        open_project(tmp_path / "q")


@pytest.mark.parametrize(
    ("url", "words"), [("nonsense", "no URL"), ("mysql://h/d", "kind mysql"), ("sqlite:///x", "leave")]
)
def test_other_databases(tmp_path, url, words):
    with pytest.raises(ConfigError, match=words):
        create_project(tmp_path / "p", Labelling(), url)


def test_what_can_be_changed_later(tmp_path):
    with make_project(tmp_path / "p", Labelling()) as project:
        changed = change_settings(project, overlap=4, question="Better?")
        assert (changed.settings.overlap, changed.settings.question) == (4, "Better?")
        with pytest.raises(ConfigError, match="mode cannot be changed"):
            change_settings(project, mode="rate")
        with pytest.raises(ConfigError, match="overlap is 0"):
            change_settings(project, overlap=0)
    with open_project(tmp_path / "p") as project:
        assert project.settings.overlap == 4


# ---------------------------------------------------------------- images and tasks


def test_image_files_have_pixels_alone(tmp_path):
    """What a file says of its origin would tell labelers whose image it is."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "secret model")
    image(3).save(tmp_path / "one.png", pnginfo=info, dpi=(72, 72))
    image(3).save(tmp_path / "two.bmp")
    one = store_image(tmp_path, tmp_path / "one.png", "one")
    two = store_image(tmp_path, tmp_path / "two.bmp", "two")
    assert one == two
    assert b"secret" not in image_path(tmp_path, one.sha256).read_bytes()
    with Image.open(image_path(tmp_path, one.sha256)) as stored:
        assert stored.info == {}
        assert stored.convert("RGB").tobytes() == image(3).tobytes()


def test_images_that_are_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="row 3"):
        store_image(tmp_path, tmp_path / "x.png", "row 3")
    with pytest.raises(DataError, match="may have 16,777,216"):
        store_image(tmp_path, Image.new("1", (5000, 5000)), "row 4")
    for name in ("../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "/"):
        with pytest.raises(ValueError, match="SHA-256"):
            image_path(tmp_path, name)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (NewTask("p", []), "no images"),
        (NewTask("p\0", [NewImage(image(0))]), "NUL"),
        (NewTask("p" * 10_001, [NewImage(image(0))]), "10001 characters"),
        (NewTask("p", [NewImage(image(0)), NewImage(image(1))], gold=[(0, 2, "a")]), "two images of the task"),
        (NewTask("p", [NewImage(image(0)), NewImage(image(1))], gold=[(0, 1, "left")]), "a, b or tie"),
        (NewTask("p", [NewImage(image(0))], split="test"), "train or validation"),
    ],
)
def test_tasks_that_are_refused_leave_nothing(tmp_path, task, words):
    with make_project(tmp_path / "p", Labelling(), tasks=0) as project:
        with pytest.raises(DataError, match=words):
            add_tasks(project, [new_task(project.settings, 0), task])
        assert rows(project, sa.select(Task)) == []


def test_a_prompt_is_in_one_part_of_the_split(tmp_path):
    settings = Labelling(validation=0.3, seed=5)
    with make_project(tmp_path / "p", settings, tasks=300) as project:
        add_tasks(project, [new_task(settings, 7), new_task(settings, 301, split="validation")])
        found = rows(project, sa.select(Prompt.split))
        assert len(found) == 301  # the prompt of task 7 is there once
        assert rows(project, sa.select(Prompt.split).where(Prompt.text == "prompt 301")) == ["validation"]
        share = found.count("validation") / 301
        assert abs(share - 0.3) < 0.1  # within four standard errors
    assert len({split_of(replace(settings, seed=seed), "x") for seed in range(50)}) == 2


# ---------------------------------------------------------------- assignments


def test_tasks_come_in_their_order_and_go_on_where_they_were(tmp_path):
    with make_project(tmp_path / "p", Labelling(), tasks=5) as project:
        ann = add_user(project, "ann")
        first = claimed(project, ann, 3, 0.0)
        assert [assigned.prompt for assigned in first] == ["prompt 0", "prompt 1", "prompt 2"]
        judged(project, ann, first[0], 1.0)
        again = claimed(project, ann, 3, 2.0)
        assert [assigned.prompt for assigned in again] == ["prompt 1", "prompt 2", "prompt 3"]
        assert again[:2] == [
            replace(old, lease_until=new.lease_until) for old, new in zip(first[1:], again, strict=False)
        ]


def test_a_task_is_not_given_to_more_labelers_than_asked_for(tmp_path):
    with make_project(tmp_path / "p", Labelling(overlap=2), tasks=3) as project:
        users = [add_user(project, name) for name in "abc"]
        held = [claimed(project, user, 3, 0.0) for user in users]
        assert [len(assigned) for assigned in held] == [3, 3, 0]
        for user, assigned in zip(users, held, strict=True):
            for one in assigned:
                judged(project, user, one, 1.0)
        assert rows(project, sa.select(Task.finished)) == [2, 2, 2]
        assert claimed(project, users[2], 3, 100 * HOUR) == []


def test_an_unfinished_task_comes_back_after_its_lease(tmp_path):
    with make_project(tmp_path / "p", Labelling(lease_minutes=10), tasks=1) as project:
        ann, ben = add_user(project, "ann"), add_user(project, "ben")
        (task,) = claimed(project, ann, 1, 0.0)
        assert task.lease_until == 600.0
        assert claimed(project, ben, 1, 599.0) == []
        with project.database.write() as session:
            assert renew(session, project.settings, ann, [task.id], 599.0) == [task.id]
        assert claimed(project, ben, 1, 1198.0) == []
        (other,) = claimed(project, ben, 1, 1199.0)
        assert other.prompt == task.prompt
        with project.database.write() as session:
            assert renew(session, project.settings, ann, [task.id], 1200.0) == []
        assert claimed(project, ann, 1, 1200.0) == []


def test_what_a_closed_page_had_fetched_is_free_at_once(tmp_path):
    with make_project(tmp_path / "p", Labelling(), tasks=1) as project:
        ann, ben = add_user(project, "ann"), add_user(project, "ben")
        (task,) = claimed(project, ann, 1, 0.0)
        with project.database.write() as session:
            release(session, ben, [task.id], 1.0)
        assert claimed(project, ben, 1, 1.0) == []
        with project.database.write() as session:
            release(session, ann, [task.id], 2.0)
        assert len(claimed(project, ben, 1, 2.0)) == 1


def test_a_late_judgement_is_kept_and_counts_where_there_is_still_a_place(tmp_path):
    with make_project(tmp_path / "p", Labelling(lease_minutes=1), tasks=2) as project:
        ann, ben = add_user(project, "ann"), add_user(project, "ben")
        one, two = claimed(project, ann, 2, 0.0)
        (taken,) = claimed(project, ben, 1, 61.0)
        judged(project, ben, taken, 62.0)
        for assigned in (one, two):
            assert saved(project, ann, assigned.id, one_judgement(assigned), 63.0).complete
        assert rows(project, sa.select(Assignment.surplus).order_by(Assignment.id)) == [True, False, False]
        assert rows(project, sa.select(Task.finished).order_by(Task.id)) == [1, 1]
        assert len(rows(project, sa.select(JudgementRow))) == 3


def test_a_skipped_task_goes_to_another_labeler(tmp_path):
    with make_project(tmp_path / "p", Labelling(), tasks=1) as project:
        ann, ben = add_user(project, "ann"), add_user(project, "ben")
        (task,) = claimed(project, ann, 1, 0.0)
        skip = Judgement("s", "skip")
        assert saved(project, ann, task.id, skip, 1.0).complete
        assert claimed(project, ann, 1, 2.0) == []
        (other,) = claimed(project, ben, 1, 2.0)
        # Taken back while another has the task: kept, and surplus.
        assert saved(project, ann, task.id, Judgement("u", "undo", supersedes="s"), 3.0).status == "saved"
        saved(project, ann, task.id, one_judgement(task), 4.0)
        judged(project, ben, other, 5.0)
        assert rows(project, sa.select(Task.finished)) == [1]
        assert rows(project, sa.select(Assignment.surplus).order_by(Assignment.id)) == [True, False]


def test_undo_opens_a_task_again(tmp_path):
    with make_project(tmp_path / "p", Labelling(), tasks=1) as project:
        ann, ben = add_user(project, "ann"), add_user(project, "ben")
        (task,) = claimed(project, ann, 1, 0.0)
        (vote,) = judged(project, ann, task, 1.0)
        assert not saved(project, ann, task.id, Judgement("u", "undo", supersedes=vote.id), 2.0).complete
        assert rows(project, sa.select(Task.finished)) == [0]
        assert claimed(project, ben, 1, 3.0) == []
        (again,) = claimed(project, ann, 1, 3.0)
        assert [judgement.kind for judgement in again.judgements] == ["compare", "undo"]
        judged(project, ann, again, 4.0)
        assert rows(project, sa.select(Task.finished)) == [1]


def test_gold_tasks_come_at_their_rate_and_go_to_everyone(tmp_path):
    settings = Labelling(gold_rate=0.25, overlap=2)
    with make_project(tmp_path / "p", settings, tasks=200) as project:
        add_tasks(project, [new_task(settings, 300 + n, gold=[(0, 1, "a")]) for n in range(100)])
        for name in ("ann", "ben"):
            user = add_user(project, name)
            while got := claimed(project, user, 20, 0.0):
                for assigned in got:
                    judged(project, user, assigned, 1.0)
            kinds = rows(project, sa.select(Assignment.kind).where(Assignment.user_id == user))
            assert kinds.count("normal") == 200
            # Of n + 200 tasks a quarter: n = 67 expected, standard deviation 9.
            assert 30 < kinds.count("gold") < 105
    with make_project(tmp_path / "q", Labelling(gold_rate=0.0), tasks=20) as project:
        add_tasks(project, [new_task(settings, 300, gold=[(0, 1, "a")])])
        user = add_user(project, "ann")
        for _ in range(20):
            judged(project, user, claimed(project, user, 1, 0.0)[0], 1.0)
        assert set(rows(project, sa.select(Assignment.kind))) == {"normal"}


@pytest.mark.parametrize("mode", ["pair", "rank"])
def test_a_repeated_task_has_its_sides_swapped(tmp_path, mode):
    settings = Labelling(mode=mode, repeat_rate=0.5)
    with make_project(tmp_path / "p", settings, tasks=30) as project:
        user = add_user(project, "ann")
        while got := claimed(project, user, 1, 0.0):
            judged(project, user, got[0], 1.0)
        with project.database.read() as session:
            repeats = session.scalars(sa.select(Assignment).where(Assignment.kind == "repeat")).all()
            assert len(repeats) > 3
            for repeat in repeats:
                first = session.scalars(
                    sa.select(Assignment).where(Assignment.task_id == repeat.task_id, Assignment.kind == "normal")
                ).one()
                assert repeat.number - first.number > 5
                assert repeat.presentation == first.presentation[::-1]
                for j in first.presentation:
                    for i in first.presentation:
                        if i < j:
                            one = left_right((i, j), first.presentation, first.sides)
                            assert left_right((i, j), repeat.presentation, repeat.sides) == one[::-1]
        assert rows(project, sa.select(Task.finished)) == [1] * 30


def test_left_and_right_and_the_order_depend_on_the_seed(tmp_path):
    shown = {}
    for seed in (0, 1):
        for again in ("a", "b"):
            settings = Labelling(mode="rank", seed=seed)
            with make_project(tmp_path / f"{seed}{again}", settings, tasks=10) as project:
                tasks = claimed(project, add_user(project, "ann"), 10, 0.0)
                shown[seed, again] = [(task.presentation, task.sides) for task in tasks]
    assert shown[0, "a"] == shown[0, "b"] != shown[1, "a"]
    assert len({presentation for presentation, _ in shown[0, "a"]}) > 5
    sides = "".join(sides for _, sides in shown[0, "a"])
    assert 25 < sides.count("1") < 75  # of 100


# ---------------------------------------------------------------- judgements


def test_what_is_sent_twice_is_stored_once(tmp_path):
    with make_project(tmp_path / "p", Labelling(), tasks=2) as project:
        ann, ben = add_user(project, "ann"), add_user(project, "ben")
        one, two = claimed(project, ann, 2, 0.0)
        vote = one_judgement(one)
        assert saved(project, ann, one.id, vote, 1.0).status == "saved"
        receipt = saved(project, ann, one.id, vote, 2.0)
        assert (receipt.status, receipt.complete) == ("already saved", True)
        assert "this id" in (saved(project, ann, one.id, replace(vote, outcome="right"), 2.0).reason or "")
        assert "this id" in (saved(project, ann, two.id, vote, 2.0).reason or "")
        assert "complete" in (saved(project, ann, one.id, replace(vote, id="other"), 2.0).reason or "")
        assert "among yours" in (saved(project, ben, two.id, one_judgement(two), 2.0).reason or "")
        assert "among yours" in (saved(project, ann, 999, one_judgement(two), 2.0).reason or "")
        assert len(rows(project, sa.select(JudgementRow))) == 1


def test_judgements_are_read_as_they_were_written(tmp_path):
    with make_project(tmp_path / "p", Labelling(mode="rank", images=3), tasks=1) as project:
        ann = add_user(project, "ann")
        (task,) = claimed(project, ann, 1, 0.0)
        log = judged(project, ann, task, 1.0)
        more = [
            Judgement("m", "mark", image=1, outcome="broken", on=False, elapsed_ms=12),
            Judgement("o", "order", order=((2,), (0, 1)), confirmed=True, supersedes=log[-1].id),
        ]
        for judgement in more:
            assert saved(project, ann, task.id, judgement, 2.0).status == "saved"
        with project.database.read() as session:
            (found,) = recent(session, ann, 5)
        assert list(found.judgements) == [*log, *more]


def test_a_task_may_have_a_question_of_its_own(tmp_path):
    with make_project(tmp_path / "p", Labelling(), tasks=1) as project:
        add_tasks(project, [new_task(project.settings, 1, question="Which is sharper?")])
        found = claimed(project, add_user(project, "ann"), 2, 0.0)
        assert [task.question for task in found] == [None, "Which is sharper?"]
        with pytest.raises(DataError, match="501 characters"):
            add_tasks(project, [new_task(project.settings, 2, question="?" * 501)])


def test_one_task_of_a_user(tmp_path):
    with make_project(tmp_path / "p", Labelling(), tasks=2) as project:
        ann, ben = add_user(project, "ann"), add_user(project, "ben")
        done, other = claimed(project, ann, 2, 0.0)
        log = judged(project, ann, done, 1.0)
        with project.database.read() as session:
            found = find(session, ann, done.id)
            assert found is not None
            assert (found.id, found.prompt, list(found.judgements)) == (done.id, "prompt 0", log)
            assert find(session, ann, other.id) == other
            assert find(session, ben, done.id) is None
            assert find(session, ann, 999) is None


def test_going_back_through_earlier_tasks(tmp_path):
    with make_project(tmp_path / "p", Labelling(), tasks=5) as project:
        ann = add_user(project, "ann")
        tasks = claimed(project, ann, 5, 0.0)
        for task in tasks[:4]:
            judged(project, ann, task, 1.0)
        with project.database.read() as session:
            first = recent(session, ann, 2)
            then = recent(session, ann, 20, before=first[-1].id)
        assert [task.prompt for task in first + then] == ["prompt 3", "prompt 2", "prompt 1", "prompt 0"]


def test_nothing_is_stored_of_a_transaction_that_fails(tmp_path):
    with make_project(tmp_path / "p", Labelling(), tasks=1) as project:
        ann = add_user(project, "ann")

        def fail() -> None:
            with project.database.write() as session:
                claim(session, project.settings, ann, 1, 0.0)
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert rows(project, sa.select(Assignment)) == []


# ---------------------------------------------------------------- the database


def test_sqlite_writes_are_on_disk_when_they_end(tmp_path):
    with make_project(tmp_path / "p", Labelling()) as project, project.database.read() as session:
        for pragma, value in (
            ("journal_mode", "wal"),
            ("synchronous", 2),
            ("foreign_keys", 1),
            ("busy_timeout", 30000),
        ):
            assert session.execute(sa.text(f"PRAGMA {pragma}")).scalar_one() == value


def test_a_reader_sees_one_state_of_the_database(tmp_path):
    with make_project(tmp_path / "p", Labelling()) as project:
        count = sa.select(sa.func.count(Task.id))
        with project.database.read() as session:
            assert session.scalar(count) == 4
            add_tasks(project, [new_task(project.settings, 9)])
            assert session.scalar(count) == 4
        assert rows(project, count) == [5]


def test_a_database_of_a_newer_version_is_refused(tmp_path):
    make_project(tmp_path / "p", Labelling()).close()
    opened = db.open_database(db.sqlite_url(tmp_path / "p" / "labels.db"))
    with opened.write() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    opened.close()
    with pytest.raises(ConfigError, match="newer tastemaker"):
        open_project(tmp_path / "p")


def test_migrations_make_the_tables_of_the_models(tmp_path):
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    opened = db.open_database(db.sqlite_url(tmp_path / "x.db"))
    for _ in range(2):
        db.upgrade(opened)
        with opened.engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert db.current_revision(opened) == db.newest_revision()
        db.downgrade(opened, "base")
        assert set(sa.inspect(opened.engine).get_table_names()) <= {"alembic_version"}
    opened.close()


def test_a_second_project_row_cannot_be(tmp_path):
    with (
        make_project(tmp_path / "p", Labelling()) as project,
        pytest.raises(sa.exc.IntegrityError),
        project.database.write() as session,
    ):
        session.add(ProjectRow(id=2, uuid="x", settings={}, created=0.0))
