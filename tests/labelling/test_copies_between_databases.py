"""Backups, exports and imports between SQLite and PostgreSQL."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa

from label_projects import add_user, claimed, judged, make_project, new_task, rows
from tastemaker.errors import DataError
from tastemaker.labelling import database as db
from tastemaker.labelling.copying import copy_project
from tastemaker.labelling.export import export_project
from tastemaker.labelling.imports import import_labels
from tastemaker.labelling.project import add_tasks, open_project
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Base, Task

SETTINGS = Labelling(mode="rank", images=3, gold_rate=0.5)


def content(project):
    with project.database.read() as session:
        return {
            table.name: sorted(
                json.dumps(dict(row._mapping), sort_keys=True) for row in session.execute(sa.select(table))
            )
            for table in Base.metadata.sorted_tables
        }


def fill(project):
    add_tasks(project, [new_task(SETTINGS, 9, gold=[(0, 1, "tie")])])
    ann = add_user(project, "ann")
    for assigned in claimed(project, ann, 3, 0.0):
        judged(project, ann, assigned, 1.0)
    return ann


def test_from_either_database_to_either(tmp_path, database, postgres_server):
    with make_project(tmp_path / "p", SETTINGS, tasks=4, database=database) as project:
        ann = fill(project)
        for name, url in (("sqlite", None), ("postgresql", postgres_server.new_database())):
            copy_project(project, tmp_path / name, url)
            with open_project(tmp_path / name) as copy:
                assert copy.database.engine.dialect.name == name
                assert content(copy) == content(project)
                # Further rows get keys that are not taken.
                judged(copy, ann, claimed(copy, ann, 1, 2.0)[0], 2.0)
                add_tasks(copy, [new_task(SETTINGS, 10)])
                assert len(rows(copy, sa.select(Task.id))) == 6
        export_project(project, tmp_path / "out")
        import_labels(tmp_path / "imported", tmp_path / "out", "native", None, postgres_server.new_database())
        with open_project(tmp_path / "imported") as imported:
            assert content(imported) == content(project)
            judged(imported, ann, claimed(imported, ann, 1, 2.0)[0], 2.0)


def test_a_copy_that_fails_leaves_the_database_empty(tmp_path, postgres_server):
    url = postgres_server.new_database()
    with make_project(tmp_path / "p", SETTINGS, tasks=1) as project:
        next((tmp_path / "p/images").rglob("*.png")).write_bytes(b"x")
        with pytest.raises(DataError, match="is damaged"):
            copy_project(project, tmp_path / "copy", url)
    opened = db.open_database(url)
    assert db.current_revision(opened) is None
    opened.close()
