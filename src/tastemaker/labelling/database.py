"""The database of a labelling project: SQLite by default, PostgreSQL by URL. What a transaction wrote is on disk when
it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from tastemaker.errors import ConfigError, StorageError
from tastemaker.labelling.tables import Base

BUSY_SECONDS = 30
"""How long a transaction waits for another process that writes to the same SQLite file."""
_LOCK = 0x7461737465
"""PostgreSQL's advisory lock that writers hold: they take turns, as SQLite's writers do."""


@dataclass(frozen=True)
class Database:
    """An open database."""

    engine: sa.Engine
    _writing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def sqlite(self) -> bool:
        """Whether it is a SQLite file."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session whose reads all see the database as it was at its first one. Raises StorageError."""
        with _errors(self.engine.url), Session(self.engine) as session:
            if not self.sqlite:
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session
            session.rollback()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that is committed at the end, or undone by an exception. Writers take turns.

        When the block has ended, what it wrote is on disk. Raises StorageError.
        """
        with _errors(self.engine.url), self._writing, Session(self.engine) as session:
            if self.sqlite:
                session.connection(execution_options={"tastemaker_writes": True})
            else:
                session.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            yield session
            session.commit()

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return sa.URL.create("sqlite", database=str(path)).render_as_string()


def open_database(url: str) -> Database:
    """Opens a database, whose tables may be missing or of another version. Raises ConfigError, StorageError."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        # A connection for each session: SQLite's own are quick to open, and must not move between threads.
        engine = sa.create_engine(parsed, poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = sa.create_engine(parsed, pool_size=16, max_overflow=32, pool_pre_ping=True)
    return Database(engine)


def parse_url(url: str) -> sa.URL:
    """The address of a database. Raises ConfigError for what is none of SQLite or PostgreSQL."""
    try:
        parsed = sa.make_url(url)
        kind = parsed.get_backend_name()
    except (ArgumentError, ValueError) as error:
        raise ConfigError("the database is no URL such as postgresql://user@host:5432/name") from error
    if kind == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if kind == "sqlite":
        return parsed
    raise ConfigError(f"the database is of kind {kind}, but must be postgresql or sqlite")


def current_revision(database: Database) -> str | None:
    """The version of the tables that are there; None where there are none. Raises StorageError."""
    with _errors(database.engine.url), database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def newest_revision() -> str:
    """The version of the tables that this version of tastemaker reads."""
    head = ScriptDirectory.from_config(_alembic()).get_current_head()
    assert head is not None
    return head


def upgrade(database: Database, revision: str = "head") -> None:
    """Brings the tables to a version, as one transaction. Raises ConfigError where they are of a newer tastemaker."""
    found = current_revision(database)
    known = {script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()}
    if found is not None and found not in known:
        raise ConfigError(
            f"the labelling database has version {found}, which a newer tastemaker made: update tastemaker"
        )
    _migrate(database, lambda config: command.upgrade(config, revision))


def downgrade(database: Database, revision: str) -> None:
    """Brings the tables back to an earlier version, `base` for none at all. What they lack then is lost."""
    _migrate(database, lambda config: command.downgrade(config, revision))


def restart_keys(session: Session) -> None:
    """Lets new rows have keys beyond those of rows that were added with theirs; SQLite does by itself."""
    if session.get_bind().dialect.name == "sqlite":
        return
    for table in Base.metadata.sorted_tables:
        if table.autoincrement_column is not None:
            name, key = table.name, table.autoincrement_column.name
            most = sa.select(sa.func.coalesce(sa.func.max(table.c[key]), 0) + 1).scalar_subquery()
            session.execute(sa.select(sa.func.setval(sa.func.pg_get_serial_sequence(name, key), most, False)))


def _migrate(database: Database, change: Any) -> None:
    with _errors(database.engine.url), database.engine.connect() as connection:
        if database.sqlite:
            connection = connection.execution_options(tastemaker_writes=True)
        with connection.begin():
            if not database.sqlite:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            config = _alembic()
            config.attributes["connection"] = connection
            change(config)


def _alembic() -> AlembicConfig:
    config = AlembicConfig()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # Python's own handling of transactions begins them late; `_begin_sqlite` does it.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        f"busy_timeout = {BUSY_SECONDS * 1000}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that begins to write in its middle could find the file locked, and could not wait.
    writes = connection.get_execution_options().get("tastemaker_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _errors(url: sa.URL) -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        where = url.render_as_string(hide_password=True)
        raise StorageError(f"the labelling database {where} failed: {' '.join(str(error.orig).split())}") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise StorageError(f"the connection to the labelling database was lost: {error.orig}") from error
        raise
