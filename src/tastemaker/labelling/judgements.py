"""Storing what labelers say: judgements are added, never changed, and each is stored once however often it is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tastemaker.labelling import ranking
from tastemaker.labelling.places import counts, has_place, holds_place, withdrawn
from tastemaker.labelling.ranking import Judgement
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Assignment, JudgementRow, Task


@dataclass(frozen=True)
class Receipt:
    """What became of a judgement that a client sent."""

    id: str
    """The judgement's."""
    status: Literal["saved", "already saved", "refused"]
    reason: str | None = None
    """Why it was refused, as a sentence."""
    complete: bool = False
    """Whether the task is complete with it."""


def save(
    session: Session, settings: Labelling, user: int, judgements: Sequence[tuple[int, Judgement]], now: float
) -> list[Receipt]:
    """Adds a user's judgements (assignment, judgement), in their order, within a writing transaction.

    Those that do not fit their task as it stands are refused one by one. A receipt may be given to the client when the
    transaction has ended.
    """
    return [_save(session, settings, user, assignment, judgement, now) for assignment, judgement in judgements]


def read_judgements(session: Session, assignment: int) -> list[Judgement]:
    """The judgements of an assignment, oldest first, superseded ones included."""
    rows = session.scalars(
        sa.select(JudgementRow).where(JudgementRow.assignment_id == assignment).order_by(JudgementRow.id)
    )
    return [from_row(row) for row in rows]


def from_row(row: JudgementRow | sa.Row[Any]) -> Judgement:
    """A judgement out of its row, or out of a row of the table's columns."""
    order = None if row.order_of_images is None else tuple(tuple(group) for group in row.order_of_images)
    return Judgement(
        row.client_id, row.kind, row.left_image, row.right_image, row.outcome, row.image, order, row.confirmed,  # type: ignore[arg-type]
        row.switched_on, row.supersedes, row.elapsed_ms,
    )  # fmt: skip


def to_row(judgement: Judgement, assignment: int, now: float) -> JudgementRow:
    """The row of a judgement."""
    order = None if judgement.order is None else [list(group) for group in judgement.order]
    return JudgementRow(
        client_id=judgement.id, assignment_id=assignment, kind=judgement.kind, left_image=judgement.left,
        right_image=judgement.right, outcome=judgement.outcome, image=judgement.image, order_of_images=order,
        confirmed=judgement.confirmed, switched_on=judgement.on, supersedes=judgement.supersedes,
        elapsed_ms=judgement.elapsed_ms, created=now,
    )  # fmt: skip


def _save(
    session: Session, settings: Labelling, user: int, assignment: int, judgement: Judgement, now: float
) -> Receipt:
    row = session.get(Assignment, assignment)
    if row is None or row.user_id != user:
        return Receipt(judgement.id, "refused", "there is no such task among yours")
    stored = session.scalar(sa.select(JudgementRow).where(JudgementRow.client_id == judgement.id))
    if stored is not None:
        if stored.assignment_id == assignment and from_row(stored) == judgement:
            return Receipt(judgement.id, "already saved", complete=row.finished_at is not None)
        return Receipt(judgement.id, "refused", "another judgement has this id")
    if withdrawn(session, row):
        return Receipt(judgement.id, "refused", "the task is no longer asked for")
    before = read_judgements(session, assignment)
    reason = ranking.refusal(settings, row.presentation, before, judgement)
    if reason is not None:
        return Receipt(judgement.id, "refused", reason, row.finished_at is not None)
    if not holds_place(row, now) and not row.surplus:
        row.surplus = not has_place(session, settings, row, now)
    counted = counts(row)
    session.add(to_row(judgement, assignment, now))
    found = ranking.state(settings, row.presentation, [*before, judgement])
    row.skipped = found.skipped
    row.finished_at = (row.finished_at or now) if found.complete else None
    row.lease_until = now + 60 * settings.lease_minutes
    change = counts(row) - counted
    if change:
        session.execute(sa.update(Task).where(Task.id == row.task_id).values(finished=Task.finished + change))
    session.flush()
    return Receipt(judgement.id, "saved", complete=found.complete)
