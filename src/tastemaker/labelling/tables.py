"""The tables of a labelling project's database, which is the same on SQLite and PostgreSQL.

Times are seconds since 1970-01-01 UTC. What labelers do is never changed or deleted: a correction is a further row of
`judgement` that supersedes an earlier one. Migrations are in `migrations/`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)  # fmt: skip
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_NAMES = {
    "ix": "ix_%(column_0_label)s", "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s", "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}  # fmt: skip
"""Names of constraints, which migrations need to find them again."""
_Key = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts up only columns of type INTEGER."""


class Base(DeclarativeBase):
    """Base of the tables."""

    metadata = MetaData(naming_convention=_NAMES)


class ProjectRow(Base):
    """The project; the table has one row."""

    __tablename__ = "project"
    __table_args__ = (CheckConstraint("id = 1", name="single"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    uuid: Mapped[str] = mapped_column(String(36))
    """Names the project wherever it is copied to."""
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    """`settings.to_json`."""
    created: Mapped[float] = mapped_column(Float)


class Prompt(Base):
    """A prompt, which is in one part of the split."""

    __tablename__ = "prompt"
    __table_args__ = (Index("uq_prompt_digest", "digest", unique=True),)

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    text: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the text, which may be too long for an index."""
    split: Mapped[str] = mapped_column(String(20))
    """`train` or `validation`."""


class ImageRow(Base):
    """An image file in the project's folder, by its content."""

    __tablename__ = "image"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    size: Mapped[int] = mapped_column(Integer)
    """Bytes of the file."""


class Task(Base):
    """A prompt with K images to be labelled."""

    __tablename__ = "task"
    __table_args__ = (Index("ix_task_next", "kind", "number"), UniqueConstraint("number"))

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    number: Mapped[int] = mapped_column(Integer)
    """Tasks are handed out by this number."""
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompt.id"), index=True)
    kind: Mapped[str] = mapped_column(String(20), default="normal")
    """`normal`, or `gold` for a task whose answer is known."""
    question: Mapped[str | None] = mapped_column(Text)
    """Asked in place of the project's question."""
    gold: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    """Comparisons [a, b, `a` | `b` | `tie`] that are known to be right."""
    batch_id: Mapped[int | None] = mapped_column(ForeignKey("batch.id"), index=True)
    """The batch of a training run that waits for the task, if one does."""
    finished: Mapped[int] = mapped_column(Integer, default=0)
    """Complete assignments that count, at most the overlap."""


class TaskImage(Base):
    """An image of a task."""

    __tablename__ = "task_image"

    task_id: Mapped[int] = mapped_column(ForeignKey("task.id"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    """0 to K - 1; judgements name images by it."""
    sha256: Mapped[str] = mapped_column(ForeignKey("image.sha256"), index=True)
    model: Mapped[str] = mapped_column(Text, default="")
    """What made the image, as people call it: a model, a run, a folder. Never shown to labelers."""
    origin: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """How it was made: run, checkpoint, seed, sampler settings."""


class User(Base):
    """Who may log in."""

    __tablename__ = "user_account"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    role: Mapped[str] = mapped_column(String(20))
    """`labeler` or `admin`."""
    password_hash: Mapped[str | None] = mapped_column(Text)
    """argon2; None where the user logs in with the project's admin token."""
    disabled: Mapped[bool] = mapped_column(Boolean, default=False)
    keys: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """The user's own keys by action, where they differ from the usual ones."""
    created: Mapped[float] = mapped_column(Float)


class LoginSession(Base):
    """A browser that is logged in."""

    __tablename__ = "login_session"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of the cookie."""
    user_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"), index=True)
    created: Mapped[float] = mapped_column(Float)
    expires: Mapped[float] = mapped_column(Float)


class Invitation(Base):
    """A link with which people make themselves an account."""

    __tablename__ = "invitation"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(20))
    note: Mapped[str] = mapped_column(Text, default="")
    """For whom it is meant; only administrators see it."""
    max_uses: Mapped[int] = mapped_column(Integer, default=1)
    uses: Mapped[int] = mapped_column(Integer, default=0)
    revoked: Mapped[bool] = mapped_column(Boolean, default=False)
    created: Mapped[float] = mapped_column(Float)
    expires: Mapped[float] = mapped_column(Float)


class Assignment(Base):
    """A task in the hands of a labeler."""

    __tablename__ = "assignment"
    __table_args__ = (
        UniqueConstraint("user_id", "number"),
        UniqueConstraint("task_id", "user_id", "kind", name="uq_assignment_task_user_kind"),
        Index("ix_assignment_user_open", "user_id", "finished_at"),
    )

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("task.id"))
    user_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    number: Mapped[int] = mapped_column(Integer)
    """Counts a labeler's assignments from 0."""
    kind: Mapped[str] = mapped_column(String(20), default="normal")
    """`normal`, `gold`, or `repeat` for a task that the labeler has had before. Never shown to labelers."""
    presentation: Mapped[list[int]] = mapped_column(JSON)
    """The positions of the task's images in the order in which they are shown and inserted."""
    sides: Mapped[str] = mapped_column(Text, default="")
    """See `ranking.left_right`."""
    created: Mapped[float] = mapped_column(Float)
    lease_until: Mapped[float] = mapped_column(Float)
    """Until then the task is kept for this labeler."""
    finished_at: Mapped[float | None] = mapped_column(Float)
    """When the task was complete; None while it is not, or was reopened by an undo."""
    skipped: Mapped[bool] = mapped_column(Boolean, default=False)
    """Complete by skipping: does not count for the overlap."""
    surplus: Mapped[bool] = mapped_column(Boolean, default=False)
    """Judged after the lease had ended and the task had been given to enough others: kept, and left out of exports."""


class JudgementRow(Base):
    """One act of a labeler, as `ranking.Judgement` has it. Rows are only ever added."""

    __tablename__ = "judgement"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    client_id: Mapped[str] = mapped_column(String(36), unique=True)
    """Made by the client: what is sent twice is stored once."""
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignment.id"), index=True)
    kind: Mapped[str] = mapped_column(String(20))
    left_image: Mapped[int | None] = mapped_column(Integer)
    right_image: Mapped[int | None] = mapped_column(Integer)
    outcome: Mapped[str | None] = mapped_column(String(30))
    image: Mapped[int | None] = mapped_column(Integer)
    order_of_images: Mapped[list[list[int]] | None] = mapped_column(JSON(none_as_null=True))
    confirmed: Mapped[bool] = mapped_column(Boolean, default=False)
    switched_on: Mapped[bool] = mapped_column(Boolean, default=True)
    supersedes: Mapped[str | None] = mapped_column(String(36))
    """`client_id` of the earlier judgement."""
    elapsed_ms: Mapped[int | None] = mapped_column(Integer)
    created: Mapped[float] = mapped_column(Float)


class Batch(Base):
    """Images that a training run has sent to be labelled, and waits for."""

    __tablename__ = "batch"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 of the prompts and images: sent twice, as after a resume, it is stored once."""
    prompts: Mapped[list[str]] = mapped_column(JSON)
    images: Mapped[list[str]] = mapped_column(JSON)
    """SHA-256 of the images, in the order in which they were sent."""
    created: Mapped[float] = mapped_column(Float)
