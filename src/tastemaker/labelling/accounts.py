"""Who may do what: users, passwords, sessions, invitations, and the administrator's token.

What logs somebody in is stored only as a SHA-256 (of random secrets) or as argon2 makes it (of passwords).
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy.orm import Session

from tastemaker.errors import ConfigError, StorageError
from tastemaker.labelling.tables import Invitation, LoginSession, User
from tastemaker.web.tokens import Token

Role = Literal["labeler", "admin"]
TOKEN_FILE = "admin-token"
ADMIN = "admin"
"""The name of who logs in with the administrator's token."""
SESSION_SECONDS = 14 * 86400.0
"""How long a browser stays logged in."""
LEAST_PASSWORD, MOST_PASSWORD = 8, 200
"""Characters of a password."""
MOST_NAME = 50
"""Most characters of a name."""
MOST_NOTE = 200
"""Most characters of an invitation's note."""
_hasher = PasswordHasher()


@dataclass(frozen=True)
class Person:
    """Somebody who is logged in."""

    id: int
    name: str
    role: Role


# ---------------------------------------------------------------- the administrator's token


def admin_token(folder: Path) -> Token:
    """A project's token, in a file readable by its owner alone; made where there is none. Raises StorageError."""
    path = folder / TOKEN_FILE
    try:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            return _read_token(path)
        with os.fdopen(handle, "w") as file:
            secret = secrets.token_urlsafe(32)
            file.write(secret + "\n")
            file.flush()
            os.fsync(file.fileno())
        return Token(secret)
    except OSError as error:
        raise StorageError(f"cannot write or read {path}: {error.strerror or error}") from error


def _read_token(path: Path) -> Token:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="ascii", errors="replace") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            os.fchmod(file.fileno(), 0o600)  # as after a copy
        secret = file.read(200).strip()
    if not re.fullmatch(r"[\w-]{20,100}", secret, re.ASCII):
        raise StorageError(f"{path} has no token: delete it, and the next start makes another")
    return Token(secret)


# ---------------------------------------------------------------- names and passwords


def checked_name(name: str) -> str:
    """A user's name in its normal form (NFC). Raises ConfigError."""
    shown = unicodedata.normalize("NFC", name).strip()
    if not 0 < len(shown) <= MOST_NAME or not shown.isprintable():
        raise ConfigError(f"a name has 1 to {MOST_NAME} printable characters")
    return shown


def hashed_password(password: str) -> str:
    """argon2id of a password. Raises ConfigError for one that is too short or too long."""
    if not LEAST_PASSWORD <= len(password) <= MOST_PASSWORD:
        raise ConfigError(f"a password has {LEAST_PASSWORD} to {MOST_PASSWORD} characters")
    return _hasher.hash(_password_bytes(password))


def find_password(session: Session, name: str) -> tuple[int, str] | None:
    """The user of this name and the hash of the password; None where there is none who may log in with a password."""
    try:
        shown = checked_name(name)
    except ConfigError:  # which nobody has, and PostgreSQL refuses to look for NUL
        return None
    row = session.scalar(sa.select(User).where(User.name == shown))
    if row is None or row.password_hash is None or row.disabled:
        return None
    return row.id, row.password_hash


def is_password(password: str, found: tuple[int, str] | None) -> bool:
    """Whether a password is the user's, in about the same time where there is no such user."""
    try:
        verified = _hasher.verify(_nobodys_hash() if found is None else found[1], _password_bytes(password))
    except (VerificationError, InvalidHashError):
        return False
    return verified and found is not None


def _password_bytes(password: str) -> bytes:
    # As browsers and systems differ in how they write one letter.
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


@cache
def _nobodys_hash() -> str:
    return _hasher.hash(secrets.token_bytes(16))


# ---------------------------------------------------------------- sessions


def admin_user(session: Session, now: float) -> int:
    """The user whom the administrator's token logs in, made at the first time."""
    row = session.scalar(sa.select(User).where(User.name == ADMIN))
    if row is None:
        row = User(name=ADMIN, role="admin", password_hash=None, disabled=False, keys={}, created=now)
        session.add(row)
    row.role, row.password_hash, row.disabled = "admin", None, False  # whoever had the name, as after an import
    session.flush()
    return row.id


def begin_session(session: Session, user: int, now: float, earlier: str | None = None) -> str:
    """Logs a browser in, and returns its new cookie. The session of an `earlier` cookie of it ends.

    Sessions that have expired are deleted.
    """
    gone = LoginSession.expires <= now
    if earlier is not None:
        gone = sa.or_(gone, LoginSession.token_hash == digest(earlier))
    session.execute(sa.delete(LoginSession).where(gone))
    cookie = secrets.token_urlsafe(32)
    session.add(LoginSession(token_hash=digest(cookie), user_id=user, created=now, expires=now + SESSION_SECONDS))
    session.flush()
    return cookie


def end_session(session: Session, cookie: str) -> None:
    """Logs a browser out."""
    session.execute(sa.delete(LoginSession).where(LoginSession.token_hash == digest(cookie)))


def person_of(session: Session, cookie: str, now: float) -> Person | None:
    """Whose cookie it is; None where it is nobody's, has expired, or the user is disabled."""
    row = session.execute(
        sa.select(User.id, User.name, User.role)
        .join(LoginSession, LoginSession.user_id == User.id)
        .where(LoginSession.token_hash == digest(cookie), LoginSession.expires > now, ~User.disabled)
    ).one_or_none()
    return None if row is None else Person(row.id, row.name, row.role)


def digest(secret: str) -> str:
    """The SHA-256 under which a random secret is stored."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


# ---------------------------------------------------------------- invitations


def invite(session: Session, role: Role, note: str, max_uses: int, expires: float, now: float) -> str:
    """A new invitation's secret, which is told once."""
    secret = secrets.token_urlsafe(24)
    session.add(
        Invitation(
            token_hash=digest(secret), role=role, note=note, max_uses=max_uses, uses=0, revoked=False, created=now,
            expires=expires,
        )
    )  # fmt: skip
    session.flush()
    return secret


def find_invitation(session: Session, secret: str, now: float) -> Invitation | None:
    """The invitation of this secret; None where there is none that still holds."""
    return session.scalar(
        sa.select(Invitation).where(
            Invitation.token_hash == digest(secret), ~Invitation.revoked, Invitation.expires > now,
            Invitation.uses < Invitation.max_uses,
        )
    )  # fmt: skip


def join(session: Session, secret: str, name: str, password_hash: str, now: float) -> int:
    """A new user by invitation, within a writing transaction. Raises ConfigError, also for a name that is taken."""
    invitation = find_invitation(session, secret, now)
    if invitation is None:
        raise ConfigError("this invitation is used up, revoked or expired: ask for another")
    name = checked_name(name)
    # Names that differ in their letters' case alone would be taken for each other.
    if name.casefold() in {ADMIN, *(known.casefold() for known in session.scalars(sa.select(User.name)))}:
        raise ConfigError("the name is taken: choose another")
    invitation.uses += 1
    row = User(name=name, role=invitation.role, password_hash=password_hash, disabled=False, keys={}, created=now)
    session.add(row)
    session.flush()
    return row.id


def revoke(session: Session, invitation: int) -> None:
    """Ends an invitation."""
    session.execute(sa.update(Invitation).where(Invitation.id == invitation).values(revoked=True))


# ---------------------------------------------------------------- what administrators do with users


def set_disabled(session: Session, user: int, disabled: bool) -> None:
    """Keeps a user from logging in, and ends the user's sessions; or lets the user in again. Raises ConfigError."""
    row = _existing(session, user)
    if row.name == ADMIN and disabled:
        raise ConfigError("the user of the administrator's token cannot be disabled")
    row.disabled = disabled
    if disabled:
        end_all_sessions(session, user)


def new_password(session: Session, user: int, password_hash: str) -> None:
    """Sets a user's password, and ends the user's sessions. Raises ConfigError."""
    row = _existing(session, user)
    if row.password_hash is None:
        raise ConfigError(f"{row.name} logs in with the administrator's token, and has no password")
    row.password_hash = password_hash
    end_all_sessions(session, user)


def end_all_sessions(session: Session, user: int) -> None:
    """Logs a user out everywhere."""
    session.execute(sa.delete(LoginSession).where(LoginSession.user_id == user))


def random_password() -> str:
    """A password for somebody who has forgotten the own one: 16 letters and digits, in groups of four."""
    letters = "abcdefghjkmnpqrstuvwxyz23456789"  # without those that look like others
    return "-".join("".join(secrets.choice(letters) for _ in range(4)) for _ in range(4))


def _existing(session: Session, user: int) -> User:
    row = session.get(User, user)
    if row is None:
        raise ConfigError("there is no such user")
    return row
