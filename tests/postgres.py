"""A real PostgreSQL server that the tests start themselves, on a Unix socket in a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

USERS = ("postgres", "nobody")
"""Who the server runs as where the tests run as root, which PostgreSQL refuses to."""


def programs() -> Path | None:
    """The folder with `initdb` and `pg_ctl`; None where PostgreSQL is not installed."""
    found = shutil.which("initdb")
    folders = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    folders += [Path(os.path.realpath(found)).parent, Path(found).parent] if found else []
    return next((folder for folder in folders if all((folder / n).is_file() for n in ("initdb", "pg_ctl"))), None)


class Server:
    """A running server, which has a database for each test."""

    def __init__(self, folder: Path, bin: Path) -> None:
        self.folder, self.bin, self._count = folder, bin, 0
        self._data = ("-D", str(folder / "data"))
        self._prefix: list[str] = []
        if os.geteuid() == 0:
            user = next(found for found in map(_user, USERS) if found is not None)
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._prefix = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self._call("initdb", *self._data, "-U", "tastemaker", "-A", "trust", "-E", "UTF8",
                   "--locale=C", "--no-sync")  # fmt: skip
        self.start()

    def start(self) -> None:
        """Starts the server and waits until it can be connected to."""
        options = f"-k {self.folder} -c listen_addresses='' -c max_connections=120"
        self._call(
            "pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-o", options, "-w", "start"
        )

    def stop(self) -> None:
        """Ends the server at once, as a crash does."""
        self._call("pg_ctl", *self._data, "-m", "immediate", "-w", "stop")

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        self._count += 1
        name = f"test{self._count}"
        engine = sa.create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return self._url(name)

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://tastemaker@/{database}?host={self.folder}"

    def _call(self, program: str, *words: str) -> None:
        # Its output must not be a pipe, which the server that pg_ctl leaves behind would hold open.
        with (self.folder / "calls").open("a") as log:
            call = [*self._prefix, str(self.bin / program), *words]
            code = subprocess.run(call, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder).returncode
        if code:
            raise RuntimeError(f"{program} ended with {code}:\n{(self.folder / 'calls').read_text()[-2000:]}")


@contextmanager
def running() -> Iterator[Server]:
    """A server, which is gone with all its files at the end. Raises FileNotFoundError where there is no PostgreSQL."""
    bin = programs()
    if bin is None:
        raise FileNotFoundError("PostgreSQL is not installed (no initdb and pg_ctl)")
    # Not pytest's own folder, whose parents are closed to other users, and whose path may be too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="tastemaker-pg-"))
    try:
        server = Server(folder, bin)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None
