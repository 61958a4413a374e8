"""The tables on SQLite and PostgreSQL: migrations, and what the database itself guarantees."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import IntegrityError

from tastemaker.errors import ConfigError, StorageError
from tastemaker.labelling import database as db
from tastemaker.labelling.project import create_project, open_project
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Base, Invitation


@pytest.fixture
def opened(database, tmp_path):
    found = db.open_database(database or db.sqlite_url(tmp_path / "labels.db"))
    yield found
    found.close()


def tables(opened):
    return set(sa.inspect(opened.engine).get_table_names()) - {"alembic_version"}


def changes(opened):
    """What alembic would change for the tables to be those of the models."""
    with opened.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return compare_metadata(context, Base.metadata)


def test_up_down_and_up(opened):
    assert db.current_revision(opened) is None
    for _ in range(2):
        db.upgrade(opened)
        assert db.current_revision(opened) == db.newest_revision()
        assert tables(opened) == set(Base.metadata.tables)
        assert changes(opened) == []
        db.upgrade(opened)  # nothing left to do
        db.downgrade(opened, "base")
        assert db.current_revision(opened) is None
        assert tables(opened) == set()


def test_a_column_that_differs_from_the_models_is_found(opened):
    """`compare_metadata` does look at columns here."""
    db.upgrade(opened)
    with opened.write() as session:
        session.execute(sa.text("ALTER TABLE batch ADD COLUMN colour VARCHAR(10)"))
    assert [(change[0], change[3].name) for change in changes(opened)] == [("remove_column", "colour")]


def test_each_revision_can_be_left_and_reached(opened):
    """One step at a time, in both directions."""
    scripts = [script.revision for script in db.ScriptDirectory.from_config(db._alembic()).walk_revisions()][::-1]
    for revision in scripts:
        db.upgrade(opened, revision)
        assert db.current_revision(opened) == revision
    for revision in [*scripts[-2::-1], "base"]:
        db.downgrade(opened, revision)
        assert db.current_revision(opened) == (None if revision == "base" else revision)


def test_a_migration_that_fails_changes_nothing(opened, monkeypatch):
    """Also tables that were made before the failure are gone: DDL is within the transaction on both databases."""
    made = []

    def fail(*arguments, **options):
        made.append(arguments)
        if len(made) == 3:
            raise RuntimeError("no")
        return create(*arguments, **options)

    from alembic import op

    create = op.create_table
    monkeypatch.setattr(op, "create_table", fail)
    with pytest.raises(RuntimeError, match="no"):
        db.upgrade(opened)
    assert len(made) == 3
    assert sa.inspect(opened.engine).get_table_names() == []


def test_a_database_of_a_newer_version_is_refused(database, tmp_path):
    with create_project(tmp_path / "project", Labelling(), database) as project, project.database.write() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="has version 9999, which a newer tastemaker made: update tastemaker"):
        open_project(tmp_path / "project")


def test_a_used_database_is_no_place_for_a_new_project(database, tmp_path):
    create_project(tmp_path / "one", Labelling(), database).close()
    if database is not None:
        with pytest.raises(ConfigError, match="has a labelling project already"):
            create_project(tmp_path / "two", Labelling(), database)
    else:
        # SQLite's file is in the folder, whose project it is.
        with pytest.raises(ConfigError, match="is there already"):
            create_project(tmp_path / "one", Labelling(), database)


def test_the_database_of_another_project_is_refused(postgres_server, tmp_path, monkeypatch):
    create_project(tmp_path / "one", Labelling(), postgres_server.new_database()).close()
    other = postgres_server.new_database()
    create_project(tmp_path / "two", Labelling(), other).close()
    monkeypatch.setenv("TASTEMAKER_LABEL_DATABASE", other)
    with pytest.raises(ConfigError, match="has another project"):
        open_project(tmp_path / "one")
    open_project(tmp_path / "two").close()


def test_a_server_that_is_down_is_said(tmp_path):
    nowhere = f"postgresql://tastemaker:s3cret@/labels?host={tmp_path}"
    with pytest.raises(StorageError, match="the labelling database") as error:
        create_project(tmp_path / "project", Labelling(), nowhere)
    assert "s3cret" not in str(error.value)


def test_what_was_written_before_a_failure_is_undone(opened):
    db.upgrade(opened)
    row = {"token_hash": "a" * 64, "role": "labeler", "created": 0.0, "expires": 1.0}
    with pytest.raises(IntegrityError), opened.write() as session:
        session.add_all([Invitation(**row), Invitation(**row)])
    with opened.write() as session:
        session.add(Invitation(**row))
    with pytest.raises(IntegrityError), opened.write() as session:
        session.add(Invitation(**row))
    with opened.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Invitation)) == 1


def test_a_read_sees_one_moment(opened):
    """What others write after a session's first read is not seen by its later ones."""
    db.upgrade(opened)
    count = sa.select(sa.func.count()).select_from(Invitation)
    with opened.read() as session:
        assert session.scalar(count) == 0
        with opened.write() as other:
            other.add(Invitation(token_hash="b" * 64, role="labeler", created=0.0, expires=1.0))
        assert session.scalar(count) == 0
    with opened.read() as session:
        assert session.scalar(count) == 1
