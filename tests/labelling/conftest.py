"""Labelling projects on both databases."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import postgres

DATABASES = ("sqlite", "postgresql")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """A PostgreSQL server of the test session; skips where PostgreSQL is not installed, and fails there under CI."""
    if postgres.programs() is None:
        reason = "PostgreSQL is not installed (no initdb and pg_ctl)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with postgres.running() as server:
        yield server


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> str | None:
    """What `create_project` takes for its database: None for SQLite, the URL of an empty database of PostgreSQL."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_server").new_database()
